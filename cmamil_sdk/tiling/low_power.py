"""A slide at low power: the cells of its tissue mask, and their mean colours.

Cells share the grid's origin and a finest tile holds a whole number of them, so the share of any tile at
any scale that is tissue is an exact mean of cells.
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
BoolMask = npt.NDArray[np.bool_]
_Box = tuple[int, int, int, int]

MAX_LOST_SHARE = 0.05
"""A slide fails when a larger share of its overview than this cannot be decoded."""

_STRIP_PX = 2_000_000
_MAX_READ_PX = 2**23
"""Strips of a slide so wide that they have more pixels are read in pieces: 32 MiB as RGBA."""


@dataclass(frozen=True)
class CellGrid:
    """The cells over the whole grid of one slide.

    Attributes:
        per_tile: cells along the edge of a finest tile.
        size_level0: edge of a cell, level-0 pixels.
        size_um: edge of a cell, micrometres.
        inside: ``[rows, columns]`` bool, cells whose centre lies within the slide's bounds.
    """

    per_tile: int
    size_level0: float
    size_um: float
    inside: BoolMask

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.inside.shape[0], self.inside.shape[1]

    def centres(self, geometry: ReadGeometry, axis: int) -> npt.NDArray[np.float64]:
        """Level-0 x of the centre of each column (axis 0), or y of each row (axis 1)."""
        count = self.shape[1 - axis]
        steps = np.arange(count, dtype=np.float64) + 0.5
        return geometry.origin[axis] + steps * self.size_level0


def cells_per_tile(recipe: TilingRecipe) -> int:
    """Mask cells along the edge of a finest tile."""
    return max(1, round(recipe.tile_px * recipe.finest.mpp / recipe.tissue.cell_um))


def cell_grid(recipe: TilingRecipe, geometry: ReadGeometry) -> CellGrid:
    """The cells of a recipe on a slide."""
    per_tile = cells_per_tile(recipe)
    per_block = per_tile * geometry.block_ratio
    size = geometry.tile_size_level0 / per_tile
    inside_rows, inside_columns = (
        (np.arange(blocks * per_block) + 0.5) * size
        <= geometry.bounds_end[axis] - geometry.origin[axis]
        for blocks, axis in ((geometry.rows, 1), (geometry.columns, 0))
    )
    return CellGrid(
        per_tile=per_tile,
        size_level0=size,
        size_um=recipe.tile_px * recipe.finest.mpp / per_tile,
        inside=inside_rows[:, None] & inside_columns[None, :],
    )


@dataclass
class Overview:
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


def read_overview(reader: SlideReader, geometry: ReadGeometry, grid: CellGrid) -> Overview:
    """Read the mean colour of every cell, from the coarsest level that is no coarser, in strips.

    Raises:
        SlideCorrupt: more than 5 % of the cells cannot be decoded.
    """
    levels = reader.facts.levels
    level = max(i for i, lv in enumerate(levels) if i == 0 or lv.downsample <= grid.size_level0)
    downsample = levels[level].downsample
    rows, columns = grid.shape
    overview = Overview(
        reader=reader,
        origin=(geometry.origin[0] / downsample, geometry.origin[1] / downsample),
        level=level,
        cell_px=grid.size_level0 / downsample,
        rgb=np.full((rows, columns, 3), 255, dtype=np.uint8),
        lost=np.zeros(grid.shape, dtype=bool),
        lost_limit=int(MAX_LOST_SHARE * rows * columns),
    )
    unit = grid.per_tile
    cell_area_px = overview.cell_px**2
    strip = max(1, int(_STRIP_PX / (cell_area_px * columns)) // unit) * unit
    piece = max(1, int(_MAX_READ_PX / (cell_area_px * strip)) // unit) * unit
    for top in range(0, rows, strip):
        for left in range(0, columns, piece):
            overview.read(top, min(rows, top + strip), left, min(columns, left + piece), unit)
    return overview


def _halves(box: _Box, unit: int) -> list[_Box]:
    """A box ``(top, bottom, left, right)`` cut in two across its longer side, at whole ``unit``s."""
    top, bottom, left, right = box
    if bottom - top > right - left:
        middle = _middle(top, bottom, unit)
        return [(top, middle, left, right), (middle, bottom, left, right)]
    middle = _middle(left, right, unit)
    return [(top, bottom, left, middle), (top, bottom, middle, right)]


def _middle(first: int, last: int, unit: int) -> int:
    return first + max(1, (last - first) // unit // 2) * unit


__all__ = ["MAX_LOST_SHARE", "CellGrid", "Overview", "cell_grid", "cells_per_tile", "read_overview"]
