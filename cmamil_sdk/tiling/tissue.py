"""Tissue against background, on a mask whose cells divide the tiles evenly.

The mask's cells share the grid's origin and a finest tile holds a whole number of them, so the tissue
share of any tile at any scale is an exact mean of cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import area_average
from cmamil_sdk.tiling.geometry import ReadGeometry
from cmamil_sdk.tiling.recipe import TilingRecipe

UInt8 = npt.NDArray[np.uint8]
_Cells = tuple[int, int, int, int]
BoolMask = npt.NDArray[np.bool_]

MAX_LOST_SHARE = 0.05
"""A slide fails when a larger share of its overview than this cannot be decoded."""

_STRIP_PX = 2_000_000
# Otsu splits any image in two, also one of tissue alone or of background alone. Saturation of glass
# stays below the lower limit, that of stained tissue above the upper one (of 255).
_SATURATION_LIMITS = (12, 40)


def cells_per_tile(recipe: TilingRecipe) -> int:
    """Mask cells along the edge of a finest tile."""
    return max(1, round(recipe.tile_px * recipe.finest.mpp / recipe.tissue.cell_um))


def tissue_mask(reader: SlideReader, recipe: TilingRecipe, geometry: ReadGeometry) -> BoolMask:
    """True where there is tissue, ``[rows, columns]`` of cells over the whole grid.

    Cells whose centre lies outside the slide's bounds are False. Cells that cannot be decoded count as
    tissue: their tiles are planned, fail when they are read, and are reported; as background they
    would vanish unseen.

    Raises:
        SlideCorrupt: more than 5 % of the cells cannot be decoded.
    """
    cells = cells_per_tile(recipe) * geometry.block_ratio
    shape = (geometry.rows * cells, geometry.columns * cells)
    cell_size = geometry.tile_size_level0 / cells_per_tile(recipe)
    inside_rows, inside_cols = (
        (np.arange(n) + 0.5) * cell_size <= geometry.bounds_end[axis] - geometry.origin[axis]
        for n, axis in ((shape[0], 1), (shape[1], 0))
    )
    inside: BoolMask = inside_rows[:, None] & inside_cols[None, :]
    if recipe.tissue.method == "none":
        return inside
    overview = _read_overview(reader, geometry, shape, cell_size)
    saturation = _saturation(overview.rgb)
    threshold = np.clip(otsu_threshold(saturation[inside & ~overview.lost]), *_SATURATION_LIMITS)
    stained = (saturation > threshold) & (
        overview.rgb.max(axis=-1) >= recipe.tissue.min_value * 255
    )
    mask: BoolMask = inside & (stained | overview.lost)
    return mask


def otsu_threshold(values: UInt8) -> int:
    """The grey level that parts ``values`` into two classes of greatest between-class variance.

    Values above it form the upper class. Source: Otsu, IEEE Trans. SMC 9(1), 1979.
    """
    counts = np.bincount(values, minlength=256).astype(np.float64)
    weight = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(256))
    below, above = weight, weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = moment / below - (moment[-1] - moment) / above
        variance = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return int(np.argmax(variance))


@dataclass
class _Overview:
    """Mean colour of every cell, ``rgb [rows, columns, 3]``, and which cells cannot be decoded."""

    reader: SlideReader
    origin: tuple[float, float]
    level: int
    cell_px: float
    rgb: UInt8
    lost: BoolMask
    lost_limit: int

    def read(self, top: int, bottom: int, left: int, right: int, smallest: int) -> None:
        """Fill a box of cells; where decoding fails, halve the box until the fault is enclosed.

        Raises:
            SlideCorrupt: more cells are lost than ``lost_limit``.
        """
        x, y = (start + i * self.cell_px for start, i in zip(self.origin, (left, top), strict=True))
        x0, y0 = math.floor(x), math.floor(y)
        width, height = (right - left) * self.cell_px, (bottom - top) * self.cell_px
        x1, y1 = math.ceil(x + width), math.ceil(y + height)
        try:
            pixels = self.reader.read_region(self.level, x0, y0, x1 - x0, y1 - y0)
        except SlideCorrupt:
            if max(bottom - top, right - left) > smallest:
                for part in _halves((top, bottom, left, right), smallest):
                    self.read(*part, smallest)
                return
            self.lost[top:bottom, left:right] = True
            if self.lost.sum() > self.lost_limit:
                raise
            return
        box = (x - x0, y - y0, x - x0 + width, y - y0 + height)
        self.rgb[top:bottom, left:right] = area_average(pixels, box, right - left, bottom - top)


def _read_overview(
    reader: SlideReader, geometry: ReadGeometry, shape: tuple[int, int], cell_size: float
) -> _Overview:
    """Read the coarsest level that is no coarser than a cell, in strips."""
    levels = reader.facts.levels
    level = max(i for i, lv in enumerate(levels) if i == 0 or lv.downsample <= cell_size)
    downsample = levels[level].downsample
    smallest = round(geometry.tile_size_level0 / cell_size)
    overview = _Overview(
        reader=reader,
        origin=(geometry.origin[0] / downsample, geometry.origin[1] / downsample),
        level=level,
        cell_px=cell_size / downsample,
        rgb=np.full((*shape, 3), 255, dtype=np.uint8),
        lost=np.zeros(shape, dtype=bool),
        lost_limit=int(MAX_LOST_SHARE * shape[0] * shape[1]),
    )
    strip = max(1, int(_STRIP_PX / (overview.cell_px**2 * shape[1])) // smallest) * smallest
    for first in range(0, shape[0], strip):
        overview.read(first, min(shape[0], first + strip), 0, shape[1], smallest)
    return overview


def _halves(box: _Cells, unit: int) -> list[_Cells]:
    """A box ``(top, bottom, left, right)`` cut in two across its longer side, at whole ``unit``s."""
    top, bottom, left, right = box
    if bottom - top > right - left:
        middle = _middle(top, bottom, unit)
        return [(top, middle, left, right), (middle, bottom, left, right)]
    middle = _middle(left, right, unit)
    return [(top, bottom, left, middle), (top, bottom, middle, right)]


def _middle(first: int, last: int, unit: int) -> int:
    return first + max(1, (last - first) // unit // 2) * unit


def _saturation(rgb: UInt8) -> UInt8:
    """Saturation of the HSV cone, 0 to 255."""
    high, low = rgb.max(axis=-1).astype(np.float32), rgb.min(axis=-1).astype(np.float32)
    return np.where(high > 0, (high - low) / np.maximum(high, 1) * 255 + 0.5, 0).astype(np.uint8)


__all__ = ["cells_per_tile", "otsu_threshold", "tissue_mask"]
