"""Tissue against background: the methods of a recipe, and what is taken off and filled in after them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import FieldInvalid, SlideCorrupt, SlideTooLarge
from cmamil_sdk.slides.base import SlideFacts, SlideReader
from cmamil_sdk.tiling.blocks import read_block
from cmamil_sdk.tiling.channels import greatest_channel, least_channel
from cmamil_sdk.tiling.edge_density import edge_density
from cmamil_sdk.tiling.geometry import ReadGeometry
from cmamil_sdk.tiling.low_power import (
    MAX_LOST_SHARE,
    CellGrid,
    Overview,
    cell_grid,
    cells_per_tile,
    read_overview,
)
from cmamil_sdk.tiling.mask_file import read_mask
from cmamil_sdk.tiling.pens import pen_marks
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe
from cmamil_sdk.tiling.regions import drop_small, fill_holes

UInt8 = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

# Otsu splits any image in two, also one of tissue alone or of background alone. Saturation of glass
# stays below the lower limit, that of stained tissue above the upper one (of 255).
_SATURATION_LIMITS = (12, 40)

_VALUES_AT_ONCE = 1_000_000
MAX_CELLS = 2**27
"""Most cells of a tissue mask: 370,000 x 370,000 pixels of a slide at 40x."""


@dataclass(frozen=True)
class TissueMap:
    """What was found on a slide, in cells over the whole grid.

    Attributes:
        grid: the cells.
        tissue: ``[rows, columns]`` bool.
        pens: ``[rows, columns]`` bool, ink that was excluded; all False if the recipe keeps it.
        lost: ``[rows, columns]`` bool, what could not be decoded and counts as tissue; all False if the
            recipe looks at no pixels.
    """

    grid: CellGrid
    tissue: BoolMask
    pens: BoolMask
    lost: BoolMask


def find_tissue(
    reader: SlideReader, recipe: TilingRecipe, geometry: ReadGeometry, *, mask: Path | None = None
) -> TissueMap:
    """Tell tissue from background as the recipe says.

    Cells whose centre lies outside the slide's bounds are no tissue. What cannot be decoded counts as
    tissue: its tiles are planned, fail when they are read, and are reported; as background they would
    vanish unseen. Ink is taken off before holes are filled and after, so no stroke is filled in; specks
    are dropped last.

    Args:
        reader: the open slide.
        recipe: method and parameters.
        geometry: of the recipe on this slide.
        mask: the slide's mask file, for method ``mask`` and for no other.

    Raises:
        FieldInvalid: the method needs a mask file and none was given, or the other way round.
        SlideCorrupt: more than 5 % of the slide cannot be decoded.
        SlideTooLarge: the slide claims a size for which there is no memory.
        TissueMaskInvalid: the mask file cannot be read or has another shape than the slide.
    """
    settings = recipe.tissue
    check_mask_wanted(settings, mask)
    _check_size(reader.facts, recipe, geometry)
    grid = cell_grid(recipe, geometry)
    pens, lost = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=bool)
    overview: Overview | None = None
    if settings.method == "otsu" or settings.pens == "exclude":
        overview = read_overview(reader, geometry, grid)
        lost |= overview.lost
    if overview is not None and settings.pens == "exclude":
        pens = grid.inside & pen_marks(
            overview.rgb, cell_um=grid.size_um, min_um2=settings.pen_min_um2
        )
    found = grid.inside
    if overview is not None and settings.method == "otsu":
        found = _stained(overview.rgb, grid.inside & ~lost & ~pens, settings.min_value)
    elif settings.method == "edge-density":
        found, unread = _rich_in_edges(reader, geometry, grid, settings)
        lost |= unread
    elif mask is not None:
        found = read_mask(mask, reader.facts, geometry, grid)
    tissue = grid.inside & (_tidied(found & grid.inside, pens, grid, settings) | lost)
    return TissueMap(grid, tissue, pens, lost)


def check_mask_wanted(settings: TissueRecipe, mask: Path | None) -> None:
    """Refuse a recipe without the mask that it needs, and a mask that it does not use.

    Raises:
        FieldInvalid: one of these.
    """
    if settings.method == "mask" and mask is None:
        raise FieldInvalid(
            "The recipe takes tissue from mask files and none was given; "
            "give them with --tissue-masks."
        )
    if settings.method != "mask" and mask is not None:
        raise FieldInvalid(
            f"The mask file {mask} would have no effect: the recipe finds tissue by "
            f"{settings.method}; leave --tissue-masks out, or choose --tissue mask."
        )


def _check_size(facts: SlideFacts, recipe: TilingRecipe, geometry: ReadGeometry) -> None:
    per_block = cells_per_tile(recipe) * geometry.block_ratio
    if geometry.rows * geometry.columns * per_block**2 > MAX_CELLS:
        raise SlideTooLarge(
            f"{facts.path} claims {facts.width} x {facts.height} pixels, and tissue is looked for in "
            f"{MAX_CELLS} cells of {recipe.tissue.cell_um:g} µm at most; correct --mpp, or cut the slide "
            "into smaller ones."
        )


def _tidied(found: BoolMask, pens: BoolMask, grid: CellGrid, settings: TissueRecipe) -> BoolMask:
    """Without ink, with small holes filled and small pieces dropped."""
    cell_um2 = grid.size_um**2
    tissue = found & ~pens
    if settings.fill_holes_um2:
        tissue = fill_holes(tissue, settings.fill_holes_um2 / cell_um2) & ~pens
    if settings.drop_specks_um2:
        tissue = drop_small(tissue, settings.drop_specks_um2 / cell_um2)
    return tissue


def _stained(rgb: UInt8, judged: BoolMask, min_value: float) -> BoolMask:
    """Cells, none of them dark, that are more saturated than Otsu's threshold over the ``judged`` ones.

    Dark cells have no say in the threshold: the least tint of a black border is all saturation.
    """
    saturation, light = _saturation(rgb), greatest_channel(rgb) >= min_value * 255
    threshold = np.clip(otsu_threshold(saturation[judged & light]), *_SATURATION_LIMITS)
    stained: BoolMask = (saturation > threshold) & light
    return stained


def _rich_in_edges(
    reader: SlideReader, geometry: ReadGeometry, grid: CellGrid, settings: TissueRecipe
) -> tuple[BoolMask, BoolMask]:
    """Cells of finest tiles whose edge density is above the threshold, and of tiles not decoded.

    Every tile is read at the finest scale, as it will be when it is encoded; of a tile across the
    border of the slide's bounds, the part inside is scored.
    """
    ratio, px = geometry.block_ratio, geometry.tile_px
    rows, columns = geometry.rows * ratio, geometry.columns * ratio
    rich, lost = np.zeros((rows, columns), dtype=bool), np.zeros((rows, columns), dtype=bool)
    share_x, share_y = geometry.inside_share(len(geometry.ratios) - 1)
    widths, heights = np.round(share_x * px).astype(int), np.round(share_y * px).astype(int)
    area_px = px if settings.edge_area == "tile" else None
    for row, column in np.ndindex(geometry.rows, geometry.columns):
        block, decoded = read_block(reader, geometry, column, row)
        for y, x in np.ndindex(ratio, ratio):
            tile_y, tile_x = row * ratio + y, column * ratio + x
            part = block[y * px : y * px + heights[tile_y], x * px : x * px + widths[tile_x]]
            score = edge_density(part, tile_size_px=area_px)
            rich[tile_y, tile_x] = score > settings.edge_threshold
            lost[tile_y, tile_x] = not decoded[y, x]
        if lost.sum() > MAX_LOST_SHARE * lost.size:
            raise SlideCorrupt(
                f"{reader.facts.path}: more than {MAX_LOST_SHARE:.0%} of the slide cannot be "
                "decoded; copy the file again from its source."
            )
    cells = np.ones((grid.per_tile, grid.per_tile), dtype=bool)
    return np.kron(rich, cells), np.kron(lost, cells)


def otsu_threshold(values: UInt8) -> int:
    """The grey level that parts ``values`` into two classes of greatest between-class variance.

    Values above it form the upper class. Source: Otsu, IEEE Trans. SMC 9(1), 1979.
    """
    # numpy counts int64 copies, so not all at once
    parts = (values[i : i + _VALUES_AT_ONCE] for i in range(0, len(values), _VALUES_AT_ONCE))
    counts = np.zeros(256)
    for part in parts:
        counts += np.bincount(part, minlength=256)
    weight = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(256))
    below, above = weight, weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
        variance = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return int(np.argmax(variance))


def _saturation(rgb: UInt8) -> UInt8:
    """Saturation of the HSV cone, 0 to 255, of ``[rows, columns, 3]``."""
    found = np.empty(rgb.shape[:2], dtype=np.uint8)
    step = max(1, _VALUES_AT_ONCE // max(1, rgb.shape[1]))
    for row in range(0, len(rgb), step):
        part = rgb[row : row + step]
        high, low = (
            greatest_channel(part).astype(np.float32),
            least_channel(part).astype(np.float32),
        )
        share = (high - low) / np.maximum(high, 1)
        found[row : row + step] = np.where(high > 0, share * 255 + 0.5, 0)
    return found


__all__ = ["TissueMap", "check_mask_wanted", "find_tissue", "otsu_threshold"]
