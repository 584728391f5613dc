"""Files of one DICOM series: OpenSlide opens the whole slide from any of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import openslide

_SUFFIX = ".dcm"
_SERIES = "dicom.SeriesInstanceUID"


def one_of_each_series(paths: Sequence[Path]) -> list[Path]:
    """The paths less those of DICOM files (``.dcm``) whose series in that folder came before.

    What OpenSlide does not open stays. Opening one looks into every file beside it.
    """
    kept: list[Path] = []
    seen: set[tuple[Path, str]] = set()
    for path in paths:
        series = _series(path) if path.suffix.lower() == _SUFFIX else None
        if series is not None:
            if (path.parent, series) in seen:
                continue
            seen.add((path.parent, series))
        kept.append(path)
    return kept


def _series(path: Path) -> str | None:
    """SeriesInstanceUID of a slide; None of what is no DICOM slide that could be opened."""
    if not path.is_file():
        return None  # OpenSlide would wait for what a pipe brings
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get(_SERIES)
    except openslide.OpenSlideError:
        return None


__all__ = ["one_of_each_series"]
