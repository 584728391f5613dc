"""Tiled JPEG TIFF and SVS without OpenSlide's detour: each stored tile is read and decoded by itself.

OpenSlide still opens the file and says what it is. It also reads the levels that are no plain grid here,
and it is what this reader's pixels are compared with before they are used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.agreement import places_that_agree
from cmamil_sdk.slides.base import Closing, undecodable
from cmamil_sdk.slides.decoded_tiles import DecodedTiles
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, decode_tile
from cmamil_sdk.slides.openslide_reader import OpenSlideReader
from cmamil_sdk.slides.stored_tiles import StoredTiles
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.slides.tiff_grids import Box, TileGrid, check_vendor, tile_grids

UInt8 = npt.NDArray[np.uint8]


class DirectReader(Closing):
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    Levels whose downsample is a whole number are decoded here, and may be read by several threads at
    once. At the others OpenSlide resamples by fractions of a pixel; they are left to it. The stored tiles
    that were decoded last are kept in ``decoded``: regions side by side share those along their edges.
    """

    def __init__(self, slide: OpenSlideReader) -> None:
        """Take over ``slide``, which is closed with this reader.

        Raises:
            LayoutUnknown: the file is laid out in another way, or OpenSlide's pixels differ; ``slide``
                stays open and the caller's.
        """
        self.facts = facts = slide.facts
        check_vendor(facts.vendor)
        self._slide = slide
        self._path = Path(facts.path)
        self._tiles = StoredTiles(self._path)
        self.decoded = DecodedTiles(max_bytes=0)  # what is compared is not kept
        try:
            self._grids = tile_grids(self._path, facts.levels)
            places = places_that_agree(self, slide, self._grids)
        except BaseException:
            self._tiles.close()
            raise
        self.decoded = DecodedTiles()
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
            return self._assemble(level, grid, (x, y, width, height))
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
        self._tiles.close()
        self.decoded = DecodedTiles(max_bytes=0)

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"DirectReader({self._slide!r})"

    def _assemble(self, level: int, grid: TileGrid, box: Box) -> UInt8:
        """Pixels of a box ``(x, y, width, height)``; what lies outside the level is white."""
        x, y, width, height = box
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top, inner_width, inner_height = inside = grid.inside(box)
        right, bottom = left + inner_width, top + inner_height
        for column, row in grid.touched(inside):
            tile_x, tile_y = column * grid.tile_width, row * grid.tile_height
            x0, x1 = max(left, tile_x), min(right, tile_x + grid.tile_width)
            y0, y1 = max(top, tile_y), min(bottom, tile_y + grid.tile_height)
            tile = self._tile(level, grid, row * grid.columns + column)
            part = tile[y0 - tile_y : y1 - tile_y, x0 - tile_x : x1 - tile_x]
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return pixels

    def _tile(self, level: int, grid: TileGrid, number: int) -> UInt8:
        """Pixels of a stored tile, which is not to be written to."""
        tile = self.decoded.get((level, number))
        if tile is None:
            stored = self._tiles.read(grid, number)
            tile = decode_tile(stored, grid.prefix, grid.tile_width, grid.tile_height)
            self.decoded.put((level, number), tile)
        return tile

    def _reason(self, places: int) -> str:
        reason = f"JPEG tiles, the same as OpenSlide's at {places} places"
        others = [str(n) for n in range(len(self.facts.levels)) if n not in self._grids]
        if others:
            reason += f"; OpenSlide resamples and reads level {', '.join(others)}"
        return reason


__all__ = ["DirectReader"]
