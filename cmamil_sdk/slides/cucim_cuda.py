"""Tiles decoded by cuCIM straight into the memory of a GPU, for an encoder that runs there.

Pixels in a GPU's memory belong to the process that decoded them, so this happens in the caller's, and a
crash of the decoder ends it: use it in a process that may die, as the server's workers may, and those of
:class:`~cmamil_sdk.features.isolated_encoder.IsolatedEncoder`.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import ReaderMissing, SlideFormatUnsupported
from cmamil_sdk.slides.base import Closing, undecodable
from cmamil_sdk.slides.cucim_child import named, open_image, read_batches
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.tiff_grids import TileGrid

UInt8 = npt.NDArray[np.uint8]

MAX_MEAN_DIFFERENCE = 2.0
"""Grey levels by which a region may differ from OpenSlide's on average.

Other rounding and upsampling of colours stay below; a shift by one pixel is far above.
"""

CHECKED_SHARE = 1 / 200
"""Of all regions, chosen at random, so many are compared with OpenSlide's."""

_PLACES = 4


def why_no_cuda_decoding() -> str | None:
    """What keeps cuCIM from decoding on a GPU here, or None; imports CuPy where it is installed."""
    if not cucim_installed():
        return "cuCIM is not installed"
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        cupy = import_module("cupy")
    except ImportError as problem:
        return f"CuPy cannot be imported ({problem})"
    try:
        devices = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as problem:
        return f"CuPy finds no CUDA device ({problem})"
    return None if devices else "CuPy finds no CUDA device"


def require_cuda_decoding() -> None:
    """Refuse a machine on which cuCIM cannot decode on a GPU (ReaderMissing)."""
    missing = why_no_cuda_decoding()
    if missing:
        raise ReaderMissing(
            f"Slides cannot be decoded on a GPU: {missing}; install cmamil-sdk[gpu] on a machine "
            "with an NVIDIA GPU, or leave --reader out, which decodes on the CPU."
        )


class CudaRegions(Closing):
    """The JPEG levels of a slide that a :class:`CucimReader` has open, decoded by nvJPEG.

    Attributes:
        cupy: the module whose arrays the pixels are.
        places: regions that were compared with OpenSlide's.
        difference: largest difference of a value there, in grey levels.
        mean_difference: largest mean difference of a region there, in grey levels.
    """

    def __init__(
        self, reader: CucimReader, *, max_mean_difference: float = MAX_MEAN_DIFFERENCE
    ) -> None:
        """Open the file again in this process, and compare the heaviest tiles of each level.

        Args:
            reader: checks stored tiles and reads what lies across an edge; stays the caller's, and open.
            max_mean_difference: grey levels by which a region may differ from OpenSlide's on average.

        Raises:
            ReaderMissing: cuCIM, CuPy or a CUDA device is missing.
            SlideFormatUnsupported: a level does not suit, or its pixels differ by more.
            SlideCorrupt: one of the tiles that are compared is damaged.
        """
        require_cuda_decoding()
        self._grids = _grids_for_gpu(reader)
        self.cupy = import_module("cupy")
        self.places, self.difference, self.mean_difference = 0, 0, 0.0
        self._reader = reader
        self._max_mean_difference = max_mean_difference
        self._random = random.Random(0)
        with ExitStack() as stack:
            self._image, _ = open_image(stack.enter_context(named(reader.slide_fd)))
            for level, grid in self._grids.items():
                self._compare_heaviest(level, grid)
            self._name = stack.pop_all()

    def read_regions(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> Any:
        """Regions of one size as a CuPy array ``[N, height, width, 3]`` uint8, complete when returned.

        What lies outside the level is white. Regions across its edge, and levels that OpenSlide
        resamples or that are smaller than a tile, are decoded on the CPU. Some of the GPU's, chosen at
        random, are compared with OpenSlide's.

        Args:
            level: number of the level.
            corners: top left corners, pixels of that level.
            width: pixels of that level.
            height: pixels of that level.

        Raises:
            SlideCorrupt: a tile of one of them is cut short or corrupt.
            SlideFormatUnsupported: the pixels of one that was compared differ by more than they may.
        """
        pixels = self.cupy.empty((len(corners), height, width, 3), dtype=np.uint8)
        together = self.within(level, corners, width, height)
        if together:
            self._decode(pixels, together, level, corners)
        for number in together:
            if self._random.random() < CHECKED_SHARE:
                self._compare(pixels[number], level, corners[number])
        for number in sorted(set(range(len(corners))) - set(together)):
            region = self._reader.read_region(level, *corners[number], width, height)
            pixels[number] = self.cupy.asarray(region)
        return pixels

    def within(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> list[int]:
        """Which of the regions are decoded on the GPU: those that lie within a level that is."""
        return self._reader.within(level, corners, width, height) if level in self._grids else []

    def close(self) -> None:
        """Let go of the file; the reader stays open."""
        self._name.close()

    def _decode(
        self, pixels: Any, numbers: list[int], level: int, corners: Sequence[tuple[int, int]]
    ) -> None:
        """Fill the rows ``numbers`` of ``pixels``."""
        _, height, width, _ = pixels.shape
        for number in numbers:
            self._reader.check_tiles(level, (*corners[number], width, height))
        places = [self._reader.level_0(level, *corners[number]) for number in numbers]
        asarray = self.cupy.asarray
        batches = read_batches(
            self._image, level, places, (width, height), device="cuda", as_array=asarray
        )
        done = 0
        try:
            for batch in batches:
                pixels[asarray(numbers[done : done + len(batch)])] = batch
                # cuCIM fills the batch's memory again, on a stream of its own.
                self.cupy.cuda.get_current_stream().synchronize()
                done += len(batch)
        except RuntimeError as problem:
            path = Path(self._reader.facts.path)
            raise undecodable(path, *places[done], level, problem) from problem

    def _compare_heaviest(self, level: int, grid: TileGrid) -> None:
        """Compare the tiles of a level that hold the most."""
        corners = _heaviest_inner_tiles(grid)
        tiles = self.cupy.empty((len(corners), grid.tile_height, grid.tile_width, 3), np.uint8)
        self._decode(tiles, list(range(len(corners))), level, corners)
        for tile, corner in zip(tiles, corners, strict=True):
            self._compare(tile, level, corner)

    def _compare(self, pixels: Any, level: int, corner: tuple[int, int]) -> None:
        """Compare a region ``[height, width, 3]`` with OpenSlide's."""
        ours: UInt8 = self.cupy.asnumpy(pixels)
        height, width, _ = ours.shape
        theirs = self._reader.openslide.read_region(level, *corner, width, height)
        difference = np.abs(ours.astype(np.int16) - theirs)
        self.places += 1
        self.difference = max(self.difference, int(difference.max()))
        self.mean_difference = max(self.mean_difference, float(difference.mean()))
        if self.mean_difference > self._max_mean_difference:
            raise SlideFormatUnsupported(
                f"{self._reader.facts.path}: the GPU's pixels at {corner}, level {level}, differ from "
                f"OpenSlide's by {self.mean_difference:.2f} grey levels on average, more than "
                f"{self._max_mean_difference:g}; leave --reader out, which decodes on the CPU."
            )


def _grids_for_gpu(reader: CucimReader) -> dict[int, TileGrid]:
    """The levels that a GPU decodes: all but those smaller than a tile, which cost nothing anywhere.

    Raises:
        SlideFormatUnsupported: there are none, or cuCIM would end the process for one, or read beside it.
    """
    path, remedy = reader.facts.path, "leave --reader out, which decodes on the CPU"
    for number, grid in reader.grids.items():
        if grid.coding != "jpeg":
            problem = f"is stored as {grid.coding}, a GPU decodes JPEG alone"
            raise SlideFormatUnsupported(f"{path}: level {number} {problem}; {remedy}.")
        if (np.diff(grid.offsets) <= 0).any():
            # It loads the bytes from the first tile that it needs to the last, in the order of numbers.
            problem = "stores its tiles in another order"
            raise SlideFormatUnsupported(f"{path}: level {number} {problem}; {remedy}.")
    found = {
        number: grid
        for number, grid in reader.grids.items()
        if grid.width >= grid.tile_width and grid.height >= grid.tile_height
    }
    if not found:
        raise SlideFormatUnsupported(f"{path} has no level that is as large as a tile; {remedy}.")
    return found


def _heaviest_inner_tiles(grid: TileGrid) -> list[tuple[int, int]]:
    """Corners of up to four tiles that lie within the level, those with the most bytes."""
    columns, rows = grid.width // grid.tile_width, grid.height // grid.tile_height
    weights = grid.byte_counts.reshape(grid.rows, grid.columns)[:rows, :columns].ravel()
    heaviest = np.argsort(-weights, kind="stable")[:_PLACES]
    return [
        (int(n % columns) * grid.tile_width, int(n // columns) * grid.tile_height) for n in heaviest
    ]


__all__ = [
    "CHECKED_SHARE",
    "MAX_MEAN_DIFFERENCE",
    "CudaRegions",
    "require_cuda_decoding",
    "why_no_cuda_decoding",
]
