"""Tissue against background, on a mask whose cells divide the tiles evenly.

The mask's cells share the grid's origin and a finest tile holds a whole number of them, so the tissue
share of any tile at any scale is an exact mean of cells.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import area_average
from cmamil_sdk.tiling.geometry import ReadGeometry
from cmamil_sdk.tiling.recipe import TilingRecipe

UInt8 = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

_STRIP_PX = 16_000_000
# Otsu splits any image in two, also one of tissue alone or of background alone. Saturation of glass
# stays below the lower limit, that of stained tissue above the upper one (of 255).
_SATURATION_LIMITS = (12, 40)


def cells_per_tile(recipe: TilingRecipe) -> int:
    """Mask cells along the edge of a finest tile."""
    return max(1, round(recipe.tile_px * recipe.finest.mpp / recipe.tissue.cell_um))


def tissue_mask(reader: SlideReader, recipe: TilingRecipe, geometry: ReadGeometry) -> BoolMask:
    """True where there is tissue, ``[rows, columns]`` of cells over the whole grid.

    Cells whose centre lies outside the slide's bounds are False.

    Raises:
        SlideCorrupt: the overview cannot be decoded.
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
    saturation = _saturation(_overview(reader, geometry, shape, cell_size))
    threshold = np.clip(otsu_threshold(saturation[inside]), *_SATURATION_LIMITS)
    mask: BoolMask = inside & (saturation > threshold)
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


def _overview(
    reader: SlideReader, geometry: ReadGeometry, shape: tuple[int, int], cell_size: float
) -> UInt8:
    """Mean colour of every cell, ``[*shape, 3]``, from the coarsest level no coarser than a cell."""
    levels = reader.facts.levels
    level = max(i for i, lv in enumerate(levels) if i == 0 or lv.downsample <= cell_size)
    size = cell_size / levels[level].downsample
    left, top = (origin / levels[level].downsample for origin in geometry.origin)
    out = np.full((*shape, 3), 255, dtype=np.uint8)
    x0, x1 = math.floor(left), math.ceil(left + shape[1] * size)
    strip = max(1, int(_STRIP_PX / (size * (x1 - x0))))
    for first in range(0, shape[0], strip):
        last = min(shape[0], first + strip)
        y0, y1 = math.floor(top + first * size), math.ceil(top + last * size)
        pixels = reader.read_region(level, x0, y0, x1 - x0, y1 - y0)
        box = (left - x0, top + first * size - y0, left - x0 + shape[1] * size, 0.0)
        box = (*box[:3], box[1] + (last - first) * size)
        out[first:last] = area_average(pixels, box, shape[1], last - first)
    return out


def _saturation(rgb: UInt8) -> UInt8:
    """Saturation of the HSV cone, 0 to 255."""
    high, low = rgb.max(axis=-1).astype(np.float32), rgb.min(axis=-1).astype(np.float32)
    return np.where(high > 0, (high - low) / np.maximum(high, 1) * 255 + 0.5, 0).astype(np.uint8)


__all__ = ["cells_per_tile", "otsu_threshold", "tissue_mask"]
