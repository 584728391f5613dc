"""Choose a reader for a file."""

from __future__ import annotations

import math
import os
from pathlib import Path

from cmamil_sdk.errors import (
    FieldInvalid,
    SlideFormatUnsupported,
    SlideNotFound,
    SlideUnreadable,
)
from cmamil_sdk.slides.base import PLAUSIBLE_MPP, SlideReader
from cmamil_sdk.slides.openslide_reader import OpenSlideReader


def open_slide(path: Path, *, mpp: float | None = None) -> SlideReader:
    """Open a slide.

    Args:
        path: the slide file.
        mpp: microns per pixel of level 0, overriding what the file says.

    Raises:
        FieldInvalid: ``mpp`` is not a plausible number.
        SlideNotFound: nothing is there.
        SlideUnreadable: the operating system refuses.
        SlideFormatUnsupported: no reader knows the format.
        SlideCorrupt: the format is known, but the file cannot be opened.
    """
    check_mpp(mpp)
    _check_file(path)
    return OpenSlideReader(path, mpp=mpp, reason="OpenSlide reads this format")


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


__all__ = ["check_mpp", "open_slide"]
