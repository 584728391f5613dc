"""Pixels of a block, one tile of the coarsest scale at the finest scale's resolution.

And of single tiles of coarser scales, where these have a stored level of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import Box, area_average
from cmamil_sdk.tiling.geometry import OwnLevel, ReadGeometry

UInt8 = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]
PixelBox = tuple[int, int, int, int]

MAX_READ_PX = 2**26
"""What has more pixels is read in strips: a coarse scale of a slide that stores no coarse level."""


@dataclass(frozen=True)
class LevelSquare:
    """A square of a stored level that becomes pixels of a scale.

    Attributes:
        level, downsample: of the stored level.
        left, top: its corner, pixels of the level; whole where nothing is resampled.
        size: its edge, pixels of the level.
        edge_px: its edge, pixels of the scale.
    """

    level: int
    downsample: float
    left: float
    top: float
    size: float
    edge_px: int

    def strip(self, first: int, last: int) -> tuple[PixelBox, Box]:
        """What of the level its rows ``first`` to ``last`` take, pixels of the scale.

        Returns the box ``(x0, y0, x1, y1)`` of whole pixels of the level, and where in that box the rows
        lie, to fractions of a pixel.
        """
        upper, lower = (self.top + self.size * row / self.edge_px for row in (first, last))
        x0, y0 = math.floor(self.left), math.floor(upper)
        box = (x0, y0, math.ceil(self.left + self.size), math.ceil(lower))
        return box, (self.left - x0, upper - y0, self.left - x0 + self.size, lower - y0)

    def is_within(self, geometry: ReadGeometry) -> bool:
        """Whether it ends within the slide's bounds: what lies outside is white."""
        (_, _, right, bottom), _ = self.strip(0, self.edge_px)
        end_x, end_y = _end_of_bounds(geometry, self.downsample)
        return right <= end_x and bottom <= end_y


def block_square(geometry: ReadGeometry, column: int, row: int) -> LevelSquare:
    """Where a block lies, at the finest scale."""
    ratio = geometry.block_ratio
    return _finest_square(geometry, column * ratio, row * ratio, ratio)


def own_square(
    geometry: ReadGeometry, scale: int, own: OwnLevel, column: int, row: int
) -> LevelSquare:
    """Where the tile ``(column, row)`` of scale number ``scale`` lies in its own level.

    Its middle lies at most half a pixel of that level from where the grid has it. What it shows does
    not depend on the other scales.
    """
    step = geometry.scale_size_level0(scale) / own.downsample
    left, top = (
        start / own.downsample + place * step + (step - own.tile_px) / 2
        for start, place in zip(geometry.origin, (column, row), strict=True)
    )
    return _square(geometry, (own.level, own.downsample), (left, top), own.tile_px, 1)


def read_block(
    reader: SlideReader, geometry: ReadGeometry, column: int, row: int
) -> tuple[UInt8, BoolMask]:
    """A block at the finest scale, and which of its finest tiles could be decoded.

    Returns ``[block_px, block_px, 3]`` and ``[ratio, ratio]`` (row, column).
    """
    ratio, px = geometry.block_ratio, geometry.tile_px
    first_x, first_y = column * ratio, row * ratio
    try:
        whole = _read_square(reader, geometry, block_square(geometry, column, row))
        return whole, np.ones((ratio, ratio), dtype=bool)
    except SlideCorrupt:
        image = np.full((geometry.block_px, geometry.block_px, 3), 255, dtype=np.uint8)
        decoded = np.zeros((ratio, ratio), dtype=bool)
    for y in range(ratio):
        for x in range(ratio):
            square = _finest_square(geometry, first_x + x, first_y + y, 1)
            try:
                tile = _read_square(reader, geometry, square)
            except SlideCorrupt:
                continue
            image[y * px : (y + 1) * px, x * px : (x + 1) * px] = tile
            decoded[y, x] = True
    return image, decoded


def read_own_tile(
    reader: SlideReader,
    geometry: ReadGeometry,
    scale: int,
    own: OwnLevel,
    column: int,
    row: int,
) -> UInt8:
    """The tile ``(column, row)`` of scale number ``scale`` from its own level, ``[px, px, 3]``.

    Raises:
        SlideCorrupt: it cannot be decoded.
    """
    return _read_square(reader, geometry, own_square(geometry, scale, own, column, row))


def _finest_square(geometry: ReadGeometry, column: int, row: int, tiles: int) -> LevelSquare:
    """``tiles`` x ``tiles`` finest tiles from grid position ``(column, row)``, at the finest scale."""
    size = geometry.tile_size_level
    left = geometry.origin[0] / geometry.downsample + column * size
    top = geometry.origin[1] / geometry.downsample + row * size
    return _square(geometry, (geometry.level, geometry.downsample), (left, top), size, tiles)


def _square(
    geometry: ReadGeometry,
    level: tuple[int, float],
    corner: tuple[float, float],
    size: float,
    tiles: int,
) -> LevelSquare:
    """``tiles`` x ``tiles`` tiles, each ``size`` pixels of a level ``(number, downsample)`` wide."""
    left, top = corner
    if size.is_integer():
        # Whole pixels per tile: start on a pixel, so that tiles are cut, not resampled.
        left, top = math.floor(left + 0.5), math.floor(top + 0.5)
    return LevelSquare(*level, left, top, tiles * size, tiles * geometry.tile_px)


def _read_square(reader: SlideReader, geometry: ReadGeometry, square: LevelSquare) -> UInt8:
    """Its pixels ``[edge_px, edge_px, 3]``."""
    edge_px = square.edge_px
    strip = max(1, math.floor(edge_px * min(1.0, MAX_READ_PX / square.size**2)))
    parts = []
    for first in range(0, edge_px, strip):
        last = min(edge_px, first + strip)
        box, inside = square.strip(first, last)
        pixels = _read_in_bounds(reader, geometry, (square.level, square.downsample), box)
        parts.append(area_average(pixels, inside, edge_px, last - first))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _end_of_bounds(geometry: ReadGeometry, downsample: float) -> tuple[int, int]:
    """Just past the slide's bounds, pixels of a level."""
    end_x, end_y = (math.floor(end / downsample + 0.5) for end in geometry.bounds_end)
    return end_x, end_y


def _read_in_bounds(
    reader: SlideReader,
    geometry: ReadGeometry,
    level: tuple[int, float],
    box: PixelBox,
) -> UInt8:
    """Level pixels of a box ``(x0, y0, x1, y1)``; what lies outside the slide's bounds is white."""
    number, downsample = level
    x0, y0, x1, y1 = box
    end_x, end_y = _end_of_bounds(geometry, downsample)
    right, bottom = min(x1, end_x), min(y1, end_y)
    if (right, bottom) == (x1, y1):
        return reader.read_region(number, x0, y0, x1 - x0, y1 - y0)
    pixels = np.full((y1 - y0, x1 - x0, 3), 255, dtype=np.uint8)
    if right > x0 and bottom > y0:
        inside = reader.read_region(number, x0, y0, right - x0, bottom - y0)
        pixels[: bottom - y0, : right - x0] = inside
    return pixels


__all__ = [
    "MAX_READ_PX",
    "LevelSquare",
    "block_square",
    "own_square",
    "read_block",
    "read_own_tile",
]
