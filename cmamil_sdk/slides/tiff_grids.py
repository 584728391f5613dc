"""Pyramid levels that a TIFF stores as a plain grid of JPEG tiles."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from cmamil_sdk.slides.base import Level
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, tile_prefix
from cmamil_sdk.slides.tiff_pages import tiff_pages

Int64 = npt.NDArray[np.int64]

MAX_TILE_PX = 2**24
"""Tiles of more pixels than this are left to OpenSlide."""

_HEADER_BYTES = 2**16
_PHOTOMETRIC = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
UNPARSABLE = (
    tifffile.TiffFileError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    struct.error,
)
"""What tifffile raises depends on where in a damaged directory it stumbles."""


class LayoutUnknown(Exception):
    """The file is not what this module knows; says what differs."""


@dataclass(frozen=True)
class TileGrid:
    """One level: a grid of JPEG tiles in row-major order that starts at the level's corner.

    Attributes:
        width, height: of the level, pixels.
        tile_width, tile_height: of every tile, pixels; those at the edges reach beyond the level.
        offsets, byte_counts: ``[rows * columns]`` int64, where each tile lies in the file.
        prefix: what goes before each tile, of :func:`~cmamil_sdk.slides.jpeg_tiles.tile_prefix`.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: Int64
    byte_counts: Int64
    prefix: bytes

    @property
    def max_tile_bytes(self) -> int:
        """No JPEG of this size needs more; a larger byte count is damage."""
        return 2 * 3 * self.tile_width * self.tile_height + _HEADER_BYTES

    @property
    def columns(self) -> int:
        """Tiles along x."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Tiles along y."""
        return -(-self.height // self.tile_height)


def tile_grids(path: Path, levels: Sequence[Level]) -> dict[int, TileGrid]:
    """The grid of every level, by its number, whose downsample is a whole number.

    At the others OpenSlide resamples by fractions of a pixel; they are left to it.

    Raises:
        LayoutUnknown: the file is no TIFF, or one of these levels is stored in another way.
    """
    wanted = {n: level for n, level in enumerate(levels) if level.downsample.is_integer()}
    try:
        with tiff_pages(path) as pages:
            return {number: _grid(pages, number, level) for number, level in wanted.items()}
    except UNPARSABLE as problem:
        raise LayoutUnknown("it is no TIFF, or one with an unusual directory") from problem


def _grid(pages: Sequence[tifffile.TiffPage], number: int, level: Level) -> TileGrid:
    size = (level.width, level.height)
    found = [p for p in pages if p.is_tiled and (p.imagewidth, p.imagelength) == size]
    if len(found) != 1:
        raise LayoutUnknown(f"level {number} is {len(found)} tiled images of the TIFF, not one")
    page = found[0]
    _check_coding(page, number)
    if not 0 < page.tilewidth * page.tilelength <= MAX_TILE_PX:
        raise LayoutUnknown(
            f"level {number} has tiles of {page.tilewidth} x {page.tilelength} pixels"
        )
    try:
        prefix = tile_prefix(page.jpegtables, ycbcr=page.photometric == tifffile.PHOTOMETRIC.YCBCR)
    except DamagedTile as problem:
        raise LayoutUnknown(f"level {number}: {problem}") from problem
    grid = TileGrid(
        width=level.width,
        height=level.height,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        offsets=np.array(page.dataoffsets, dtype=np.int64),
        byte_counts=np.array(page.databytecounts, dtype=np.int64),
        prefix=prefix,
    )
    tiles = grid.rows * grid.columns
    if len(grid.offsets) != tiles or len(grid.byte_counts) != tiles:
        raise LayoutUnknown(f"level {number} lists {len(grid.offsets)} tiles instead of {tiles}")
    missing = np.count_nonzero((grid.offsets <= 0) | (grid.byte_counts <= 0))
    if missing:
        raise LayoutUnknown(f"level {number} leaves out {missing} of {tiles} tiles")
    return grid


def _check_coding(page: tifffile.TiffPage, number: int) -> None:
    if page.compression != tifffile.COMPRESSION.JPEG:
        name = tifffile.COMPRESSION(page.compression).name.lower()
        raise LayoutUnknown(f"level {number} is stored as {name}, not jpeg")
    plain = (
        page.photometric in _PHOTOMETRIC
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and (page.samplesperpixel, page.bitspersample) == (3, 8)
        and page.tiledepth == page.imagedepth == 1
    )
    if not plain:
        raise LayoutUnknown(f"level {number} is no RGB or YCbCr image with 8 bits")


__all__ = ["MAX_TILE_PX", "UNPARSABLE", "LayoutUnknown", "TileGrid", "tile_grids"]
