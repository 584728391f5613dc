"""Choose a reader for a file."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from cmamil_sdk.errors import (
    FieldInvalid,
    SlideFormatUnsupported,
    SlideNotFound,
    SlideUnreadable,
)
from cmamil_sdk.slides.base import PLAUSIBLE_MPP, SlideReader
from cmamil_sdk.slides.cucim_reader import CucimReader
from cmamil_sdk.slides.direct_reader import DirectReader
from cmamil_sdk.slides.openslide_reader import OpenSlideReader
from cmamil_sdk.slides.tiff_grids import LayoutUnknown

ReaderName = Literal["auto", "direct", "cucim", "openslide"]
"""Readers that may be asked for; ``auto`` takes the fastest that reads the file right."""


def open_slide(path: Path, *, mpp: float | None = None, reader: ReaderName = "auto") -> SlideReader:
    """Open a slide; its facts name the reader that was chosen, and say why.

    Every reader gives the same pixels.

    Args:
        path: the slide file.
        mpp: microns per pixel of level 0, overriding what the file says.
        reader: which reader to take.

    Raises:
        FieldInvalid: ``mpp`` is not a plausible number, or there is no such reader.
        SlideNotFound: nothing is there.
        SlideUnreadable: the operating system refuses.
        SlideFormatUnsupported: no reader knows the format, or not the one that was asked for.
        SlideCorrupt: the format is known, but the file cannot be opened.
        DependencyMissing: cuCIM is asked for and not installed.
        DecoderCrashed: it is asked for, and two of its processes died on the file.
    """
    if reader not in get_args(ReaderName):
        raise FieldInvalid(
            f"There is no reader {reader!r}; choose among {', '.join(get_args(ReaderName))}."
        )
    check_mpp(mpp)
    _check_file(path)
    slide = OpenSlideReader(path, mpp=mpp, reason="asked for")
    if reader == "openslide":
        return slide
    if reader == "cucim":
        return _with_cucim(slide)
    try:
        return DirectReader(slide)
    except LayoutUnknown as problem:
        if reader == "direct":
            slide.close()
            raise SlideFormatUnsupported(
                f"{path} cannot be read directly: {problem}; leave --reader out, or choose openslide."
            ) from problem
        slide.facts = replace(slide.facts, reader_reason=f"not read directly, because {problem}")
        return slide


def _with_cucim(slide: OpenSlideReader) -> CucimReader:
    try:
        return CucimReader(slide)
    except LayoutUnknown as problem:
        slide.close()
        raise SlideFormatUnsupported(
            f"{slide.facts.path} cannot be read by cuCIM: {problem}; leave --reader out, or choose "
            "openslide."
        ) from problem
    except BaseException:
        slide.close()
        raise


def check_mpp(mpp: float | None) -> None:
    """Refuse a given value that no slide has (FieldInvalid); None is none given."""
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
        raise FieldInvalid(
            f"--mpp {mpp} is not between {low} and {high} microns per pixel; "
            "0.25 is about 40x, 0.5 about 20x."
        )


def _check_file(path: Path) -> None:
    try:
        str(path).encode()  # features and reports are named by it
        if path.is_dir():
            raise SlideFormatUnsupported(f"{path} is a directory; name a slide file inside it.")
        if not path.is_file():
            raise SlideNotFound(
                f"There is no slide file at {path}; check the path and its extension."
            )
        with path.open("rb"):
            pass
    except PermissionError as problem:
        raise SlideUnreadable(
            f"{path} may not be read by user {os.getuid()}; change its permissions."
        ) from problem
    except (OSError, ValueError) as problem:
        raise SlideNotFound(f"{str(path)!r} cannot be opened ({problem}); check it.") from problem


__all__ = ["ReaderName", "check_mpp", "open_slide"]
