"""Tiled JPEG and JPEG 2000 TIFF through cuCIM, which decodes in a process of its own.

cuCIM can crash on a file, gives what lay in its buffer for a tile that it cannot decode, and fills the
outside in its own way. So a file is looked at before it is handed over; every stored tile that a read
touches is looked at before cuCIM decodes it; cuCIM is never asked for what lies outside a level; and its
pixels are compared with OpenSlide's when a slide is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cmamil_sdk.child_pipe import ProcessDied
from cmamil_sdk.errors import DecoderCrashed, ReaderMissing
from cmamil_sdk.slides.agreement import LARGEST_DIFFERENCE, places_that_agree
from cmamil_sdk.slides.base import Closing, Level, undecodable
from cmamil_sdk.slides.cucim_process import (
    HOW_TO_INSTALL,
    DecoderProcess,
    cucim_installed,
)
from cmamil_sdk.slides.jp2k_tiles import check_codestream
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, check_tile
from cmamil_sdk.slides.openslide_reader import OpenSlideReader
from cmamil_sdk.slides.stored_tiles import StoredTiles
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.slides.tiff_grids import (
    Box,
    Coding,
    LayoutUnknown,
    TileGrid,
    check_vendor,
    tile_grids,
)
from cmamil_sdk.wording import counted

UInt8 = npt.NDArray[np.uint8]
_T = TypeVar("_T")

_ATTEMPTS = 2
_MAX_REQUEST_BYTES = 2**26
_NAMES: dict[Coding, str] = {"jpeg": "JPEG", "jpeg 2000": "JPEG 2000"}


class CucimReader(Closing):
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    Levels whose downsample is a whole number are decoded by cuCIM: there pixel ``p`` of a level lies at
    ``p * downsample`` of level 0, from which cuCIM comes back to ``p`` (in general that takes
    ``ceil(p * downsample)``, because it cuts off). At the others OpenSlide resamples by fractions of a
    pixel; they are left to it. Threads that share a reader wait for each other.
    """

    def __init__(self, slide: OpenSlideReader) -> None:
        """Take over ``slide``, which is closed with this reader.

        Raises:
            ReaderMissing: cuCIM is not installed.
            LayoutUnknown: the file does not suit cuCIM, or OpenSlide's pixels differ.
            DecoderCrashed: two processes of cuCIM died on it.

        After an error ``slide`` stays open and the caller's.
        """
        self.facts = facts = slide.facts
        if not cucim_installed():
            raise ReaderMissing(
                f"cuCIM is not installed (there is one for Linux only); {HOW_TO_INSTALL}, or leave "
                "--reader out."
            )
        check_vendor(facts.vendor)
        self._slide = slide
        self._path = Path(facts.path)
        self._lock = threading.Lock()
        self._process: DecoderProcess | None = None
        self._tiles = StoredTiles(self._path)
        try:
            self.grids = tile_grids(self._path, facts.levels, tuple(_NAMES))
            _check_predictors(self.grids)
            version, seen = self._with_process(lambda p: (p.version, p.levels), (0, 0), 0)
            _check_levels(facts.levels, seen, self.grids)
            places = places_that_agree(self, slide, self.grids, telling=True)
        except BaseException:
            self._close_own()
            raise
        self.facts = replace(facts, reader="cucim", reader_reason=self._reason(version, places))

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``; ``x, y`` in pixels of that level.

        Raises:
            SlideCorrupt: a tile is cut short or corrupt; the reader stays usable.
            DecoderCrashed: two processes of cuCIM died on it.
        """
        grid = self.grids.get(level)
        if grid is None:
            return self._slide.read_region(level, x, y, width, height)
        box = (x, y, width, height)
        inside = grid.inside(box)
        if inside == box and width and height:
            whole: UInt8 = self._decode(level, [(x, y)], width, height)[0]
            return whole
        pixels = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top, inner_width, inner_height = inside
        if inner_width and inner_height:
            part = self._decode(level, [(left, top)], inner_width, inner_height)[0]
            pixels[top - y : top - y + inner_height, left - x : left - x + inner_width] = part
        return pixels

    def read_regions(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> UInt8:
        """Regions of one size, ``[N, height, width, 3]``, those within the level in batches.

        Args:
            level: number of the level.
            corners: top left corners, pixels of that level.
            width: pixels of that level.
            height: pixels of that level.

        Raises:
            SlideCorrupt: a tile of one of them is cut short or corrupt.
            DecoderCrashed: two processes of cuCIM died on it.
        """
        pixels = np.empty((len(corners), height, width, 3), dtype=np.uint8)
        together = self.within(level, corners, width, height)
        most = max(1, _MAX_REQUEST_BYTES // max(1, 3 * width * height))
        for first in range(0, len(together), most):
            numbers = together[first : first + most]
            batch = [corners[number] for number in numbers]
            pixels[numbers] = self._decode(level, batch, width, height)
        for number in sorted(set(range(len(corners))) - set(together)):
            pixels[number] = self.read_region(level, *corners[number], width, height)
        return pixels

    def within(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> list[int]:
        """Which of the regions cuCIM can read in one batch: those that lie within one of its levels."""
        grid = self.grids.get(level)
        if grid is None or not (width and height):
            return []
        boxes = [(x, y, width, height) for x, y in corners]
        return [number for number, box in enumerate(boxes) if grid.inside(box) == box]

    def check_tiles(self, level: int, box: Box) -> None:
        """Look at every stored tile that a box inside a level touches; nothing is decoded.

        Raises:
            SlideCorrupt: one is cut short, or not what it should be.
        """
        grid = self.grids[level]
        check = check_tile if grid.coding == "jpeg" else check_codestream
        try:
            for column, row in grid.touched(box):
                stored = self._tiles.read(grid, row * grid.columns + column)
                check(stored, grid.tile_width, grid.tile_height)
        except DamagedTile as problem:
            raise undecodable(
                self._path, *self.level_0(level, *box[:2]), level, problem
            ) from problem

    def level_0(self, level: int, x: int, y: int) -> tuple[int, int]:
        """Where a pixel of a level of :attr:`grids` lies, in pixels of level 0."""
        downsample = int(self.facts.levels[level].downsample)
        return x * downsample, y * downsample

    @property
    def openslide(self) -> OpenSlideReader:
        """OpenSlide on the same file, whose pixels are the right ones."""
        return self._slide

    @property
    def slide_fd(self) -> int:
        """The descriptor of the open file."""
        return self._tiles.fd

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """End the process and release the file."""
        self._slide.close()
        self._close_own()

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"CucimReader({self._slide!r})"

    def _decode(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> UInt8:
        """Regions that lie within a level of :attr:`grids`, ``[N, height, width, 3]``."""
        for x, y in corners:
            self.check_tiles(level, (x, y, width, height))
        places = [self.level_0(level, x, y) for x, y in corners]
        try:
            return self._with_process(
                lambda process: process.read(level, places, width, height), places[0], level
            )
        except DamagedTile as problem:
            raise undecodable(self._path, *places[0], level, problem) from problem

    def _with_process(
        self, work: Callable[[DecoderProcess], _T], place: tuple[int, int], level: int
    ) -> _T:
        """Do ``work`` in a process; if that dies, once more in a new one."""
        ends: list[str] = []
        with self._lock:
            while len(ends) < _ATTEMPTS:
                try:
                    if self._process is None:
                        self._process = DecoderProcess(self._tiles.fd)
                    return work(self._process)
                except ProcessDied as problem:
                    ends.append(str(problem))
                    self._end_process()
        raise DecoderCrashed(
            f"{self._path}: reading at ({place[0]}, {place[1]}), level {level}, ended two processes "
            f"of cuCIM ({'; '.join(ends)}); use --reader openslide."
        )

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None

    def _close_own(self) -> None:
        with self._lock:
            self._end_process()
        self._tiles.close()

    def _reason(self, version: str, places: int) -> str:
        found = {grid.coding for grid in self.grids.values()}
        codings = " and ".join(_NAMES[coding] for coding in sorted(found))
        largest = max(LARGEST_DIFFERENCE[coding] for coding in found)
        same = f"within {counted(largest, 'grey level')} of" if largest else "the same as"
        reason = f"{codings} tiles by cuCIM {version}, {same} OpenSlide's at {places} places"
        others = [str(n) for n in range(len(self.facts.levels)) if n not in self.grids]
        if others:
            reason += f"; OpenSlide resamples and reads level {', '.join(others)}"
        return reason


def _check_predictors(grids: dict[int, TileGrid]) -> None:
    for number, grid in grids.items():
        if grid.predictor != 1:
            raise LayoutUnknown(f"level {number} is stored with predictor {grid.predictor}")


def _check_levels(
    levels: Sequence[Level], seen: Sequence[tuple[int, int, float]], grids: dict[int, TileGrid]
) -> None:
    """Refuse a file in which cuCIM sees other levels than OpenSlide: it drops what it cannot parse.

    It may see more, after those that are read.
    """
    ours = [(level.width, level.height) for level in levels]
    theirs = [(width, height) for width, height, _ in seen][: len(ours)]
    if ours != theirs:
        raise LayoutUnknown(f"cuCIM sees levels of {theirs} pixels instead of {ours}")
    for number in grids:
        if seen[number][2] != levels[number].downsample:
            raise LayoutUnknown(
                f"cuCIM takes level {number} for {seen[number][2]:g} times coarser instead of "
                f"{levels[number].downsample:g}"
            )


__all__ = ["CucimReader"]
