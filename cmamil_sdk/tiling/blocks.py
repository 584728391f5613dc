"""Pixels of a block, one tile of the coarsest scale at the finest scale's resolution.

And of single tiles of coarser scales, where these have a stored level of their own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import area_average
from cmamil_sdk.tiling.geometry import OwnLevel, ReadGeometry

UInt8 = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]

_MAX_READ_PX = 2**26
"""What has more pixels is read in strips: a coarse scale of a slide that stores no coarse level."""


def read_block(
    reader: SlideReader, geometry: ReadGeometry, column: int, row: int
) -> tuple[UInt8, BoolMask]:
    """A block at the finest scale, and which of its finest tiles could be decoded.

    Returns ``[block_px, block_px, 3]`` and ``[ratio, ratio]`` (row, column).
    """
    ratio, px = geometry.block_ratio, geometry.tile_px
    first_x, first_y = column * ratio, row * ratio
    try:
        whole = _read_finest(reader, geometry, first_x, first_y, ratio)
        return whole, np.ones((ratio, ratio), dtype=bool)
    except SlideCorrupt:
        image = np.full((geometry.block_px, geometry.block_px, 3), 255, dtype=np.uint8)
        decoded = np.zeros((ratio, ratio), dtype=bool)
    for y in range(ratio):
        for x in range(ratio):
            try:
                tile = _read_finest(reader, geometry, first_x + x, first_y + y, 1)
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
    """The tile ``(column, row)`` of scale number ``scale``, from its own level.

    Its middle lies at most half a pixel of that level from where the grid has it. What it shows does
    not depend on the other scales.

    Returns ``[tile_px, tile_px, 3]``.

    Raises:
        SlideCorrupt: it cannot be decoded.
    """
    step = geometry.scale_size_level0(scale) / own.downsample
    left, top = (
        start / own.downsample + place * step + (step - own.tile_px) / 2
        for start, place in zip(geometry.origin, (column, row), strict=True)
    )
    level = own.level, own.downsample
    return _read_tiles(reader, geometry, level, (left, top), own.tile_px, 1)


def _read_finest(
    reader: SlideReader, geometry: ReadGeometry, column: int, row: int, tiles: int
) -> UInt8:
    """``tiles`` x ``tiles`` finest tiles from grid position ``(column, row)``, at the finest scale."""
    size = geometry.tile_size_level
    left = geometry.origin[0] / geometry.downsample + column * size
    top = geometry.origin[1] / geometry.downsample + row * size
    level = geometry.level, geometry.downsample
    return _read_tiles(reader, geometry, level, (left, top), size, tiles)


def _read_tiles(
    reader: SlideReader,
    geometry: ReadGeometry,
    level: tuple[int, float],
    corner: tuple[float, float],
    size: float,
    tiles: int,
) -> UInt8:
    """``tiles`` x ``tiles`` tiles, each ``size`` pixels of a level ``(number, downsample)`` wide."""
    left, top = corner
    if size.is_integer():
        # Whole pixels per tile: start on a pixel, so that tiles are cut, not resampled.
        left, top = math.floor(left + 0.5), math.floor(top + 0.5)
    edge_px, whole = tiles * geometry.tile_px, tiles * size
    strip = max(1, math.floor(edge_px * min(1.0, _MAX_READ_PX / whole**2)))
    parts = []
    for first in range(0, edge_px, strip):
        last = min(edge_px, first + strip)
        upper, lower = (top + whole * row / edge_px for row in (first, last))
        x0, y0 = math.floor(left), math.floor(upper)
        box = (x0, y0, math.ceil(left + whole), math.ceil(lower))
        pixels = _read_in_bounds(reader, geometry, level, box)
        inside = (left - x0, upper - y0, left - x0 + whole, lower - y0)
        parts.append(area_average(pixels, inside, edge_px, last - first))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_in_bounds(
    reader: SlideReader,
    geometry: ReadGeometry,
    level: tuple[int, float],
    box: tuple[int, int, int, int],
) -> UInt8:
    """Level pixels of a box ``(x0, y0, x1, y1)``; what lies outside the slide's bounds is white."""
    number, downsample = level
    x0, y0, x1, y1 = box
    end_x, end_y = (math.floor(end / downsample + 0.5) for end in geometry.bounds_end)
    right, bottom = min(x1, end_x), min(y1, end_y)
    if (right, bottom) == (x1, y1):
        return reader.read_region(number, x0, y0, x1 - x0, y1 - y0)
    pixels = np.full((y1 - y0, x1 - x0, 3), 255, dtype=np.uint8)
    if right > x0 and bottom > y0:
        inside = reader.read_region(number, x0, y0, right - x0, bottom - y0)
        pixels[: bottom - y0, : right - x0] = inside
    return pixels


__all__ = ["read_block", "read_own_tile"]
