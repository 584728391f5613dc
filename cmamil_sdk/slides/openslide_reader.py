"""Slides through OpenSlide: the reader that knows the most formats."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide

from cmamil_sdk.errors import (
    InputError,
    SlideCorrupt,
    SlideFormatUnsupported,
    SlideNotFound,
    SlideUnreadable,
)
from cmamil_sdk.slides.base import Closing, undecodable
from cmamil_sdk.slides.pixels import on_white
from cmamil_sdk.slides.slide_properties import slide_facts
from cmamil_sdk.slides.sparse_levels import without_sparse_levels
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.slides.tiff_claims import tiff_claims
from cmamil_sdk.slides.tiff_grids import UNPARSABLE
from cmamil_sdk.slides.tiff_pages import tiff_pages

UInt8 = npt.NDArray[np.uint8]

_CACHE_BYTES = 16 * 2**20


class OpenSlideReader(Closing):
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    Raises:
        SlideFormatUnsupported: OpenSlide does not know the format.
        SlideCorrupt: it knows the format, but cannot open the file.
    """

    def __init__(self, path: Path, *, mpp: float | None = None, reason: str) -> None:
        self._path = path
        self._claims = tiff_claims(path)
        slide = _open(path)
        self._slide: openslide.OpenSlide | None = slide
        facts = slide_facts(
            path,
            slide,
            override_mpp=mpp,
            compression=self._claims.compression,
            reader="openslide",
            reason=reason,
        )
        facts = replace(facts, warnings=facts.warnings + self._claims.warnings)
        self.facts = without_sparse_levels(facts, self._claims.stored)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``; ``x, y`` in pixels of that level.

        OpenSlide takes level-0 coordinates: at levels whose downsample is no whole number it
        resamples by the remaining fraction of a level pixel (at most half a level-0 pixel).

        Raises:
            SlideCorrupt: the pixels cannot be decoded; the reader stays usable.
            InputError: after that, the file cannot be opened again.
        """
        stored = self.facts.levels[level]
        downsample = stored.downsample
        corner = (math.floor(x * downsample + 0.5), math.floor(y * downsample + 0.5))
        margin = 0 if downsample.is_integer() else 1  # of the pixels it resamples from
        box = (x - margin, y - margin, width + 2 * margin, height + 2 * margin)
        if self._claims.covers_oversized((stored.width, stored.height), box):
            raise undecodable(
                self._path, *corner, level, "a tile claims more bytes than it can have"
            )
        if self._slide is None:
            self._slide = _open(self._path)
        try:
            rgba = np.asarray(self._slide.read_region(corner, level, (width, height)))
        except openslide.OpenSlideError as problem:
            # An OpenSlide handle refuses every call after its first error.
            self.close()
            self._slide = None
            raise undecodable(self._path, *corner, level, problem) from problem
        return on_white(rgba)

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """Release the file."""
        if self._slide is not None:
            self._slide.close()

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


def _unknown(path: Path) -> InputError:
    """Why OpenSlide knows no format for this file: it is gone, cut short, or something else."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    except FileNotFoundError:
        return SlideNotFound(f"{path} is no longer there; bring it back and start again.")
    except OSError as problem:
        return SlideUnreadable(
            f"{path} can no longer be read ({problem.strerror}); check the disk and its permissions."
        )
    if size == 0:
        return SlideCorrupt(f"{path} is empty; copy the file again from its source.")
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
        with tiff_pages(path) as pages:
            ends = [
                offset + length
                for page in pages
                for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
    except UNPARSABLE:
        return False
    return bool(ends) and max(ends) <= size


__all__ = ["OpenSlideReader"]
