"""Pyramid levels that a TIFF stores as a plain grid of JPEG or JPEG 2000 tiles."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import tifffile

from cmamil_sdk.slides.base import Level
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, tile_prefix
from cmamil_sdk.slides.tiff_pages import tiff_pages

Int64 = npt.NDArray[np.int64]
Box = tuple[int, int, int, int]

_VENDORS = ("aperio", "generic-tiff")
"""Vendors, as OpenSlide names them, whose levels are grids of tiles without overlap or offset."""

MAX_TILE_PX = 2**24
"""Tiles of more pixels than this are left to OpenSlide."""

Coding = Literal["jpeg", "jpeg 2000"]
_CODINGS: dict[int, Coding] = {
    tifffile.COMPRESSION.JPEG: "jpeg",
    tifffile.COMPRESSION.APERIO_JP2000_YCBC: "jpeg 2000",
    tifffile.COMPRESSION.APERIO_JP2000_RGB: "jpeg 2000",
}

_JPEG_ALONE: tuple[Coding, ...] = ("jpeg",)

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
    """One level: a grid of tiles in row-major order that starts at the level's corner.

    Attributes:
        width, height: of the level, pixels.
        tile_width, tile_height: of every tile, pixels; those at the edges reach beyond the level.
        offsets, byte_counts: ``[rows * columns]`` int64, where each tile lies in the file.
        coding: of every tile.
        predictor: the directory's Predictor, 1 where there is none.
        prefix: what goes before each JPEG tile, of
            :func:`~cmamil_sdk.slides.jpeg_tiles.tile_prefix`; empty for JPEG 2000.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: Int64
    byte_counts: Int64
    coding: Coding
    predictor: int
    prefix: bytes

    @property
    def max_tile_bytes(self) -> int:
        """No coded tile of this size needs more; a larger byte count is damage."""
        return 2 * 3 * self.tile_width * self.tile_height + _HEADER_BYTES

    @property
    def columns(self) -> int:
        """Tiles along x."""
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        """Tiles along y."""
        return -(-self.height // self.tile_height)

    def inside(self, box: Box) -> Box:
        """The part of a box ``(x, y, width, height)`` that lies in the level; its size may be 0."""
        x, y, width, height = box
        left, top = min(max(0, x), self.width), min(max(0, y), self.height)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        return left, top, max(0, right - left), max(0, bottom - top)

    def touched(self, box: Box) -> Iterator[tuple[int, int]]:
        """Column and row of every tile that a box inside the level touches, row by row."""
        x, y, width, height = box
        if width and height:
            for row in range(y // self.tile_height, -(-(y + height) // self.tile_height)):
                for column in range(x // self.tile_width, -(-(x + width) // self.tile_width)):
                    yield column, row


def check_vendor(vendor: str) -> None:
    """Refuse files of a vendor, as OpenSlide names it, whose tiles may overlap (LayoutUnknown)."""
    if vendor not in _VENDORS:
        raise LayoutUnknown(f"files of vendor {vendor} are not known to be plain grids")


def tile_grids(
    path: Path, levels: Sequence[Level], codings: Collection[Coding] = _JPEG_ALONE
) -> dict[int, TileGrid]:
    """The grid of every level, by its number, whose downsample is a whole number.

    At the others OpenSlide resamples by fractions of a pixel; they are left to it.

    Args:
        path: the file.
        levels: as OpenSlide tells them.
        codings: how tiles may be stored.

    Raises:
        LayoutUnknown: the file is no TIFF, or one of these levels is stored in another way.
    """
    wanted = {n: level for n, level in enumerate(levels) if level.downsample.is_integer()}
    try:
        with tiff_pages(path) as pages:
            return {n: _grid(pages, n, level, codings) for n, level in wanted.items()}
    except UNPARSABLE as problem:
        raise LayoutUnknown("it is no TIFF, or one with an unusual directory") from problem


def _grid(
    pages: Sequence[tifffile.TiffPage], number: int, level: Level, codings: Collection[Coding]
) -> TileGrid:
    size = (level.width, level.height)
    found = [p for p in pages if p.is_tiled and (p.imagewidth, p.imagelength) == size]
    if len(found) != 1:
        raise LayoutUnknown(f"level {number} is {len(found)} tiled images of the TIFF, not one")
    page = found[0]
    coding = _coding(page, number, codings)
    if not 0 < page.tilewidth * page.tilelength <= MAX_TILE_PX:
        raise LayoutUnknown(
            f"level {number} has tiles of {page.tilewidth} x {page.tilelength} pixels"
        )
    grid = TileGrid(
        width=level.width,
        height=level.height,
        tile_width=page.tilewidth,
        tile_height=page.tilelength,
        offsets=np.array(page.dataoffsets, dtype=np.int64),
        byte_counts=np.array(page.databytecounts, dtype=np.int64),
        coding=coding,
        predictor=int(page.predictor),
        prefix=_prefix(page, number) if coding == "jpeg" else b"",
    )
    tiles = grid.rows * grid.columns
    if len(grid.offsets) != tiles or len(grid.byte_counts) != tiles:
        raise LayoutUnknown(f"level {number} lists {len(grid.offsets)} tiles instead of {tiles}")
    missing = np.count_nonzero((grid.offsets <= 0) | (grid.byte_counts <= 0))
    if missing:
        raise LayoutUnknown(f"level {number} leaves out {missing} of {tiles} tiles")
    return grid


def _coding(page: tifffile.TiffPage, number: int, codings: Collection[Coding]) -> Coding:
    coding = _CODINGS.get(page.compression)
    if coding is None or coding not in codings:
        name = tifffile.COMPRESSION(page.compression).name.lower()
        raise LayoutUnknown(f"level {number} is stored as {name}, not {' or '.join(codings)}")
    plain = (
        page.photometric in _PHOTOMETRIC
        and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        and (page.samplesperpixel, page.bitspersample) == (3, 8)
        and page.tiledepth == page.imagedepth == 1
    )
    if not plain:
        raise LayoutUnknown(f"level {number} is no RGB or YCbCr image with 8 bits")
    return coding


def _prefix(page: tifffile.TiffPage, number: int) -> bytes:
    try:
        return tile_prefix(page.jpegtables, ycbcr=page.photometric == tifffile.PHOTOMETRIC.YCBCR)
    except DamagedTile as problem:
        raise LayoutUnknown(f"level {number}: {problem}") from problem


__all__ = [
    "MAX_TILE_PX",
    "UNPARSABLE",
    "Box",
    "Coding",
    "LayoutUnknown",
    "TileGrid",
    "check_vendor",
    "tile_grids",
]
