"""The directories of a TIFF, also of one that was made to do harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tifffile

_MAX_DIRECTORIES = 4096
"""A slide has a dozen; each takes a fraction of a millisecond to parse."""


@contextmanager
def tiff_pages(path: Path) -> Iterator[list[tifffile.TiffPage]]:
    """Open a TIFF for as long as its directories, first to last, are looked at.

    tifffile follows a chain of directories that leads back into itself for ever.

    Raises:
        tifffile.TiffFileError: it is no TIFF, its directories run in a circle, or there are too many.
        Exception: see :data:`~cmamil_sdk.slides.tiff_grids.UNPARSABLE`.
    """
    with tifffile.TiffFile(path) as file:
        found: dict[int, tifffile.TiffPage] = {}
        for page in file.pages:
            if page.offset in found:
                raise tifffile.TiffFileError("its directories run in a circle")
            if len(found) == _MAX_DIRECTORIES:
                raise tifffile.TiffFileError(f"it has more than {_MAX_DIRECTORIES} directories")
            if isinstance(page, tifffile.TiffPage):
                found[page.offset] = page
        yield list(found.values())


__all__ = ["tiff_pages"]
