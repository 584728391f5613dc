"""Slides through OpenSlide: the reader that knows the most formats."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from cmamil_sdk.errors import SlideCorrupt, SlideFormatUnsupported
from cmamil_sdk.slides.base import undecodable
from cmamil_sdk.slides.pixels import on_white
from cmamil_sdk.slides.slide_properties import slide_facts
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.slides.tiff_grids import UNPARSABLE

UInt8 = npt.NDArray[np.uint8]

_CACHE_BYTES = 16 * 2**20
_MAX_TILE_PX = 2**26


class OpenSlideReader:
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    Raises:
        SlideFormatUnsupported: OpenSlide does not know the format.
        SlideCorrupt: it knows the format, but cannot open the file.
    """

    def __init__(self, path: Path, *, mpp: float | None = None, reason: str) -> None:
        self._path = path
        self._slide = _open(path)
        self.facts = slide_facts(
            path,
            self._slide,
            override_mpp=mpp,
            compression=_tiff_compression(path),
            reader="openslide",
            reason=reason,
        )

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``; ``x, y`` in pixels of that level.

        OpenSlide takes level-0 coordinates: at levels whose downsample is no whole number it
        resamples by the remaining fraction of a level pixel (at most half a level-0 pixel).
        """
        downsample = self.facts.levels[level].downsample
        corner = (math.floor(x * downsample + 0.5), math.floor(y * downsample + 0.5))
        try:
            rgba = np.asarray(self._slide.read_region(corner, level, (width, height)))
        except openslide.OpenSlideError as problem:
            # An OpenSlide handle refuses every call after its first error.
            self._slide.close()
            self._slide = _open(self._path)
            raise undecodable(self._path, *corner, level, problem) from problem
        return on_white(rgba)

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()

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
        return f"OpenSlideReader({str(self._path)!r})"


def _open(path: Path) -> openslide.OpenSlide:
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as problem:
        raise _unknown(path) from problem
    except openslide.OpenSlideError as problem:
        if "unsupported" in str(problem).lower():
            raise SlideFormatUnsupported(
                f"{path} holds what OpenSlide cannot decode ({problem}); "
                "convert it to a pyramidal tiled JPEG TIFF."
            ) from problem
        raise SlideCorrupt(
            f"{path} cannot be opened ({problem}); copy the file again from its source."
        ) from problem
    slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
    return slide


def _unknown(path: Path) -> SlideCorrupt | SlideFormatUnsupported:
    """Why OpenSlide knows no format for this file: it is cut short, or it is something else."""
    size = path.stat().st_size
    if size == 0:
        return SlideCorrupt(f"{path} is empty; copy the file again from its source.")
    with path.open("rb") as file:
        is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if is_tiff and not _is_whole_tiff(path, size):
        return SlideCorrupt(
            f"{path} is a TIFF that is cut short or damaged; copy the file again from its source."
        )
    return SlideFormatUnsupported(
        f"{path} is in no format that OpenSlide knows; convert it to a pyramidal tiled TIFF."
    )


def _is_whole_tiff(path: Path, size: int) -> bool:
    """Whether every stored segment of every page lies within the file's ``size``."""
    try:
        with tifffile.TiffFile(path) as file:
            ends = [
                offset + length
                for page in file.pages
                if isinstance(page, tifffile.TiffPage)
                for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
    except UNPARSABLE:
        return False
    return bool(ends) and max(ends) <= size


def _tiff_compression(path: Path) -> str | None:
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page.keyframe for page in file.pages]
            largest_px = max(page.tilewidth * page.tilelength for page in pages if page)
            compression = str(tifffile.COMPRESSION(file.pages.first.compression).name).lower()
    except UNPARSABLE:
        # Not a TIFF container (DICOM, MRXS, VMS), or one that only its vendor's reader parses.
        return None
    if largest_px > _MAX_TILE_PX:
        # OpenSlide ends the process when it gets no memory for one tile.
        raise SlideCorrupt(
            f"{path} claims to hold a tile of {largest_px} pixels; copy the file again from its source."
        )
    return compression


__all__ = ["OpenSlideReader"]
