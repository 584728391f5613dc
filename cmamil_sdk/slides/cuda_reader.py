"""A slide whose regions are decoded into the memory of a GPU, for an encoder that runs there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import ReaderMissing
from cmamil_sdk.slides.base import Closing
from cmamil_sdk.slides.cucim_cuda import CudaRegions
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.wording import counted

UInt8 = npt.NDArray[np.uint8]

DEVICE = "cuda:0"
"""cuCIM is not told a device: it takes the first that the process sees."""


class CudaReader(Closing):
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    What the contract asks for is read on the CPU, as :class:`CucimReader` does; beside it, regions are
    decoded on the GPU. These stay there.
    """

    def __init__(self, reader: CucimReader, device: str) -> None:
        """Take over ``reader``, which is closed with this one.

        Raises:
            ReaderMissing: cuCIM, CuPy or the device is missing, or is another than the first.
            SlideFormatUnsupported: a level does not suit, or the GPU's pixels are not OpenSlide's.
            SlideCorrupt: one of the tiles that are compared is damaged.

        After an error ``reader`` stays open and the caller's.
        """
        if device != DEVICE:
            raise ReaderMissing(
                f"cuCIM decodes on {DEVICE}, not on {device}; choose the GPU with CUDA_VISIBLE_DEVICES, "
                "or leave --reader out, which decodes on the CPU."
            )
        self._reader = reader
        self._regions = regions = CudaRegions(reader)
        self._stream = regions.cupy.cuda.Stream(non_blocking=True)
        reason = (
            f"{reader.facts.reader_reason}; decoded on {device}, where {counted(regions.places, 'tile')} "
            f"differ from OpenSlide's by {regions.mean_difference:.2f} grey levels on average and "
            f"{regions.difference} at most"
        )
        self.facts = replace(reader.facts, reader_reason=reason)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level`` on the host, as :class:`CucimReader`'s."""
        return self._reader.read_region(level, x, y, width, height)

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return self._reader.thumbnail(max_px)

    @property
    def stream(self) -> Any:
        """CuPy's stream for work on the pixels, a context: nothing else on the device waits for it."""
        return self._stream

    def decodes(self, level: int, x: int, y: int, width: int, height: int) -> bool:
        """Whether a region is decoded on the GPU: it lies within a level that is."""
        return bool(self._regions.within(level, [(x, y)], width, height))

    def read_on_device(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> Any:
        """Regions ``[N, height, width, 3]`` as :meth:`CudaRegions.read_regions` gives them."""
        return self._regions.read_regions(level, corners, width, height)

    def to_device(self, array: npt.NDArray[Any]) -> Any:
        """A copy on the GPU."""
        return self._regions.cupy.asarray(array)

    def room(self, shape: tuple[int, ...]) -> Any:
        """An uninitialised uint8 array on the GPU."""
        return self._regions.cupy.empty(shape, np.uint8)

    def close(self) -> None:
        """Release the file."""
        self._regions.close()
        self._reader.close()

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"CudaReader({self._reader!r}, {DEVICE!r})"


__all__ = ["DEVICE", "CudaReader"]
