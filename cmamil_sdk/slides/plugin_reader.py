"""Slides through a plug-in's library."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideFormatUnsupported
from cmamil_sdk.slides.base import Closing, Level, SlideFacts, undecodable
from cmamil_sdk.slides.isolated_slide import IsolatedSlide, LibraryFailed
from cmamil_sdk.slides.pixels import rgb_of
from cmamil_sdk.slides.plugins import SlidePlugin, VendorSlide
from cmamil_sdk.slides.slide_properties import slide_facts
from cmamil_sdk.slides.thumbnail import bounds_thumbnail

UInt8 = npt.NDArray[np.uint8]
_T = TypeVar("_T")


class PluginReader(Closing):
    """One open slide; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    The library is asked only for what lies within a level, at level-0 coordinates that fall on the
    wanted pixel whether it rounds them down or resamples.

    Raises:
        SlideFormatUnsupported: its package is not installed, or it does not know the file.
        SlideCorrupt: it fails with anything else, or what it says of the file makes no sense.
        DecoderCrashed: an isolated library died.
    """

    def __init__(self, path: Path, plugin: SlidePlugin, *, mpp: float | None, reason: str) -> None:
        self._path, self._plugin = path, plugin
        self._slide = _open(path, plugin)
        try:
            self.facts = self._ask(lambda: _facts(path, self._slide, mpp, reason))
            self._check_levels()
        except BaseException:
            self._slide.close()
            raise

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``; ``x, y`` in pixels of that level."""
        stored = self.facts.levels[level]
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top = max(0, x), max(0, y)
        right, bottom = min(x + width, stored.width), min(y + height, stored.height)
        if right > left and bottom > top:
            part = self._read(stored, level, left, top, right - left, bottom - top)
            region[top - y : bottom - y, left - x : right - x] = part
        return region

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"PluginReader({str(self._path)!r}, {self._plugin.name!r})"

    def _read(self, stored: Level, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        corner = (corner_of(x, stored.downsample), corner_of(y, stored.downsample))
        try:
            pixels = np.asarray(self._slide.read_region(corner, level, (width, height)))
        except (CmamilError, MemoryError):
            raise
        except Exception as problem:
            named = LibraryFailed(f"plug-in {self._plugin.name}: {_said(problem)}")
            raise undecodable(self._path, *corner, level, named) from problem
        fits = (
            pixels.ndim == 3 and pixels.shape[:2] == (height, width) and pixels.shape[2] in (3, 4)
        )
        if not fits or pixels.dtype != np.uint8:
            shown = f"{pixels.dtype} {list(pixels.shape)}"
            named = LibraryFailed(f"plug-in {self._plugin.name} returned {shown}")
            raise undecodable(self._path, *corner, level, named)
        return rgb_of(pixels)

    def _ask(self, question: Callable[[], _T]) -> _T:
        try:
            return question()
        except (CmamilError, MemoryError):
            raise
        except Exception as problem:
            raise _failure(self._path, self._plugin, problem) from problem

    def _check_levels(self) -> None:
        facts = self.facts
        spans = [level.downsample for level in facts.levels]
        sizes = [edge for level in facts.levels for edge in (level.width, level.height)]
        whole = bool(spans) and spans[0] == 1 and sorted(set(spans)) == spans and min(sizes) > 0
        first = facts.levels[:1]
        if not whole or (first[0].width, first[0].height) != (facts.width, facts.height):
            shown = [(level.width, level.height, level.downsample) for level in facts.levels]
            raise SlideCorrupt(
                f"{self._path}: plug-in {self._plugin.name} says that its levels are {shown}, which "
                "makes no pyramid; copy the file again from its source."
            )


def corner_of(pixel: int, downsample: float) -> int:
    """The least level-0 coordinate that a reader rounding down takes for ``pixel`` of a level."""
    corner = math.ceil(pixel * downsample)
    # The product may have been rounded below the true one.
    return corner if int(corner / downsample) >= pixel else corner + 1


def _open(path: Path, plugin: SlidePlugin) -> VendorSlide:
    try:
        return IsolatedSlide(path, plugin.open) if plugin.isolated else plugin.open(path)
    except (CmamilError, MemoryError):
        raise
    except ImportError as problem:
        raise SlideFormatUnsupported(
            f"{path} is read by the package {plugin.package}, which cannot be used here ({problem}); "
            f"pip install {plugin.package}, or convert the file to a pyramidal tiled TIFF."
        ) from problem
    except Exception as problem:
        raise _failure(path, plugin, problem) from problem


def _facts(path: Path, slide: VendorSlide, mpp: float | None, reason: str) -> SlideFacts:
    return slide_facts(
        path, slide, override_mpp=mpp, compression=None, reader="plugin", reason=reason
    )


def _failure(path: Path, plugin: SlidePlugin, problem: Exception) -> CmamilError:
    """The error of a library that fails to open a file, which it names as OpenSlide does."""
    if "UnsupportedFormat" in type(problem).__name__:
        return SlideFormatUnsupported(
            f"{path} is not what plug-in {plugin.name} reads, or is damaged ({_said(problem)}); "
            "copy it again from its source, or convert it to a pyramidal tiled TIFF."
        )
    return SlideCorrupt(
        f"{path} cannot be opened by plug-in {plugin.name} ({_said(problem)}); "
        "copy the file again from its source."
    )


def _said(problem: Exception) -> str:
    return (
        str(problem)
        if isinstance(problem, LibraryFailed)
        else f"{type(problem).__name__}: {problem}"
    )


__all__ = ["PluginReader", "corner_of"]
