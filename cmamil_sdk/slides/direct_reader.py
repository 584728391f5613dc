"""Tiled JPEG TIFF and SVS without OpenSlide's detour: each stored tile is read and decoded by itself.

OpenSlide still opens the file and says what it is. It also reads the levels that are no plain grid here,
and it is what this reader's pixels are compared with before they are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader, undecodable
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, decode_tile
from cmamil_sdk.slides.openslide_reader import OpenSlideReader
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.slides.tiff_grids import LayoutUnknown, TileGrid, tile_grids

UInt8 = npt.NDArray[np.uint8]
_Box = tuple[int, int, int, int]

_VENDORS = ("aperio", "generic-tiff")
"""Vendors, as OpenSlide names them, whose levels are grids of tiles without overlap or offset."""


class DirectReader:
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    Levels whose downsample is a whole number are decoded here, and may be read by several threads at
    once, which share a file descriptor and nothing else. At the others OpenSlide resamples by fractions
    of a pixel; they are left to it.
    """

    def __init__(self, slide: OpenSlideReader) -> None:
        """Take over ``slide``, which is closed with this reader.

        Raises:
            LayoutUnknown: the file is laid out in another way, or OpenSlide's pixels differ; ``slide``
                stays open and the caller's.
        """
        self.facts = facts = slide.facts
        if not hasattr(os, "pread"):
            raise LayoutUnknown("this system has no pread")
        if facts.vendor not in _VENDORS:
            raise LayoutUnknown(f"files of vendor {facts.vendor} are not known to be plain grids")
        self._slide = slide
        self._path = Path(facts.path)
        self._grids = tile_grids(self._path, facts.levels)
        self._fd = _open(self._path)
        try:
            places = sum(self._compare(level) for level in self._grids)
        except BaseException:
            os.close(self._fd)
            raise
        self.facts = replace(facts, reader="direct", reader_reason=self._reason(places))

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``; ``x, y`` in pixels of that level.

        Raises:
            SlideCorrupt: a tile is cut short or corrupt; the reader stays usable.
        """
        grid = self._grids.get(level)
        if grid is None:
            return self._slide.read_region(level, x, y, width, height)
        try:
            return self._assemble(grid, (x, y, width, height))
        except DamagedTile as problem:
            downsample = int(self.facts.levels[level].downsample)
            raise undecodable(
                self._path, x * downsample, y * downsample, level, problem
            ) from problem

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1  # the number may soon belong to another file

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the reader."""
        self.close()

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"DirectReader({self._slide!r})"

    def _assemble(self, grid: TileGrid, box: _Box) -> UInt8:
        """Pixels of a box ``(x, y, width, height)``; what lies outside the level is white."""
        x, y, width, height = box
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top = max(0, x), max(0, y)
        right, bottom = min(x + width, grid.width), min(y + height, grid.height)
        if right <= left or bottom <= top:
            return pixels
        for row in range(top // grid.tile_height, -(-bottom // grid.tile_height)):
            for column in range(left // grid.tile_width, -(-right // grid.tile_width)):
                tile_x, tile_y = column * grid.tile_width, row * grid.tile_height
                x0, x1 = max(left, tile_x), min(right, tile_x + grid.tile_width)
                y0, y1 = max(top, tile_y), min(bottom, tile_y + grid.tile_height)
                tile = self._tile(grid, row * grid.columns + column)
                part = tile[y0 - tile_y : y1 - tile_y, x0 - tile_x : x1 - tile_x]
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return pixels

    def _tile(self, grid: TileGrid, number: int) -> UInt8:
        size = int(grid.byte_counts[number])
        if size > grid.max_tile_bytes:
            raise DamagedTile(f"a tile claims {size} bytes")
        try:
            stored = os.pread(self._fd, size, int(grid.offsets[number]))
        except OSError as problem:
            raise DamagedTile(f"a tile cannot be read: {problem.strerror}") from problem
        if len(stored) < size:
            raise DamagedTile("the file ends within a tile")
        return decode_tile(stored, grid.prefix, grid.tile_width, grid.tile_height)

    def _compare(self, level: int) -> int:
        """At how many places of a level OpenSlide reads the same; damaged ones are passed over.

        Raises:
            LayoutUnknown: it reads something else, or every place is damaged.
        """
        equal = 0
        for box in _sample_boxes(self._grids[level]):
            theirs, ours = _pixels(self._slide, level, box), _pixels(self, level, box)
            if theirs is None and ours is None:
                continue
            if theirs is None or ours is None or not np.array_equal(theirs, ours):
                raise LayoutUnknown(
                    f"OpenSlide reads something else in level {level} at ({box[0]}, {box[1]})"
                )
            equal += 1
        if not equal:
            raise LayoutUnknown(f"no tile that was tried in level {level} can be decoded")
        return equal

    def _reason(self, places: int) -> str:
        reason = f"JPEG tiles, the same as OpenSlide's at {places} places"
        others = [str(n) for n in range(len(self.facts.levels)) if n not in self._grids]
        if others:
            reason += f"; OpenSlide resamples and reads level {', '.join(others)}"
        return reason


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        raise LayoutUnknown(f"it cannot be opened a second time ({problem.strerror})") from problem


def _sample_boxes(grid: TileGrid) -> Iterator[_Box]:
    """Three boxes of one tile's size: the first tile, a corner of four, the last tile and its outside."""
    size = (grid.tile_width, grid.tile_height)
    corner_x = grid.columns // 2 * grid.tile_width - grid.tile_width // 2
    corner_y = grid.rows // 2 * grid.tile_height - grid.tile_height // 2
    yield (0, 0, *size)
    yield (corner_x, corner_y, *size)
    yield ((grid.columns - 1) * size[0], (grid.rows - 1) * size[1], *size)


def _pixels(reader: SlideReader, level: int, box: _Box) -> UInt8 | None:
    """What ``reader`` makes of a box, or None if it is damaged."""
    try:
        return reader.read_region(level, *box)
    except SlideCorrupt:
        return None


__all__ = ["DirectReader"]
