"""Tiles decoded by cuCIM straight into the memory of a GPU, for an encoder that runs there.

Pixels in a GPU's memory belong to the process that decoded them, so this happens in the caller's, and a
crash of the decoder ends it: use it in a worker process that may die, as the server's may.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.errors import EngineMissing, SlideFormatUnsupported
from cmamil_sdk.slides.base import Closing, undecodable
from cmamil_sdk.slides.cucim_child import named, open_image, read_batches
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.tiff_grids import TileGrid

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


class CudaRegions(Closing):
    """The JPEG levels of a slide that a :class:`CucimReader` has open, decoded by nvJPEG.

    Attributes:
        difference: largest difference, in grey levels, from the reader's pixels where they were compared.
    """

    def __init__(self, reader: CucimReader, *, max_difference: int = 0) -> None:
        """Open the file again in this process, and compare the heaviest tiles of each level.

        Args:
            reader: checks stored tiles and reads what lies across an edge; stays the caller's, and open.
            max_difference: grey levels by which pixels may differ from the reader's, OpenSlide's.

        Raises:
            EngineMissing: cuCIM, CuPy or a CUDA device is missing.
            SlideFormatUnsupported: a level does not suit, or its pixels differ by more.
            SlideCorrupt: one of the tiles that are compared is damaged.
        """
        missing = why_no_cuda_decoding()
        if missing:
            raise EngineMissing(f"Slides cannot be decoded on a GPU: {missing}; decode on the CPU.")
        for number, grid in reader.grids.items():
            _check_suits_gpu(reader.facts.path, number, grid)
        self._cupy = import_module("cupy")
        self._reader = reader
        with ExitStack() as stack:
            self._image, _ = open_image(stack.enter_context(named(reader.slide_fd)))
            self.difference = max(self._compare(level) for level in reader.grids)
            if self.difference > max_difference:
                raise SlideFormatUnsupported(
                    f"{reader.facts.path}: the GPU's pixels differ from OpenSlide's by up to "
                    f"{self.difference} grey levels; decode on the CPU, or accept that with "
                    "max_difference."
                )
            self._name = stack.pop_all()

    def read_regions(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> Any:
        """Regions of one size as a CuPy array ``[N, height, width, 3]`` uint8, complete when returned.

        What lies outside the level is white. Regions across its edge, and levels that OpenSlide
        resamples, are decoded on the CPU.

        Args:
            level: number of the level.
            corners: top left corners, pixels of that level.
            width: pixels of that level.
            height: pixels of that level.

        Raises:
            SlideCorrupt: a tile of one of them is cut short or corrupt.
        """
        pixels = self._cupy.empty((len(corners), height, width, 3), dtype=np.uint8)
        together = self._reader.within(level, corners, width, height)
        if together:
            self._decode(pixels, together, level, corners)
        for number in sorted(set(range(len(corners))) - set(together)):
            region = self._reader.read_region(level, *corners[number], width, height)
            pixels[number] = self._cupy.asarray(region)
        return pixels

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
        asarray = self._cupy.asarray
        batches = read_batches(
            self._image, level, places, (width, height), device="cuda", as_array=asarray
        )
        done = 0
        try:
            for batch in batches:
                pixels[asarray(numbers[done : done + len(batch)])] = batch
                # cuCIM fills the batch's memory again, on a stream of its own.
                self._cupy.cuda.get_current_stream().synchronize()
                done += len(batch)
        except RuntimeError as problem:
            path = Path(self._reader.facts.path)
            raise undecodable(path, *places[done], level, problem) from problem

    def _compare(self, level: int) -> int:
        """Largest difference from the reader's pixels in the tiles of a level that hold the most."""
        grid = self._reader.grids[level]
        corners = _heaviest_inner_tiles(grid)
        size = (grid.tile_width, grid.tile_height)
        ours = self._cupy.asnumpy(self.read_regions(level, corners, *size))
        theirs = self._reader.read_regions(level, corners, *size)
        return int(np.abs(ours.astype(np.int16) - theirs).max())


def _check_suits_gpu(path: str, number: int, grid: TileGrid) -> None:
    """Refuse what cuCIM ends the process for, or reads beside the file for (SlideFormatUnsupported)."""
    problem = None
    if grid.coding != "jpeg":
        problem = f"is stored as {grid.coding}, a GPU decodes JPEG alone"
    elif (np.diff(grid.offsets) <= 0).any():
        # It loads the bytes from the first tile that it needs to the last, in the order of their numbers.
        problem = "stores its tiles in another order"
    elif grid.width < grid.tile_width or grid.height < grid.tile_height:
        problem = "is smaller than a tile"
    if problem:
        raise SlideFormatUnsupported(f"{path}: level {number} {problem}; decode on the CPU.")


def _heaviest_inner_tiles(grid: TileGrid) -> list[tuple[int, int]]:
    """Corners of up to four tiles that lie within the level, those with the most bytes."""
    columns, rows = grid.width // grid.tile_width, grid.height // grid.tile_height
    weights = grid.byte_counts.reshape(grid.rows, grid.columns)[:rows, :columns].ravel()
    heaviest = np.argsort(-weights, kind="stable")[:_PLACES]
    return [
        (int(n % columns) * grid.tile_width, int(n // columns) * grid.tile_height) for n in heaviest
    ]


__all__ = ["CudaRegions", "why_no_cuda_decoding"]
