"""What a plug-in that reads a further vendor's format says of itself.

A package adds one by an entry point of the group ``cmamil_sdk.slide_readers`` whose object is a
:class:`SlidePlugin`. OpenSlide is asked first: a plug-in reads only what OpenSlide does not know.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cmamil_sdk.slides.slide_properties import OpenSlideLike


class VendorSlide(OpenSlideLike, Protocol):
    """An open slide with the interface of OpenSlide's Python binding, or as much of it as is used."""

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        """A PIL image or uint8 array ``[height, width, 3 or 4]``.

        Args:
            location: top left corner in level-0 pixels; lies within the slide.
            level: of the pixels that are returned.
            size: width and height in pixels of ``level``; lies within it.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...


@dataclass(frozen=True)
class SlidePlugin:
    """How files of some suffixes are opened.

    Attributes:
        name: of the plug-in, in messages.
        suffixes: of its files, lower case, with their dot.
        open: opens a file. May raise anything; ImportError means that ``package`` is not installed.
        package: what ``pip install`` calls the library that reads the files.
        isolated: whether the library is native code that a damaged file can crash; it then runs in a
            process of its own, and ``open`` must be importable there by its module and name.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[[Path], VendorSlide]
    package: str
    isolated: bool = False

    @property
    def version(self) -> str | None:
        """Version of ``package``, None if it is not installed."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


__all__ = ["SlidePlugin", "VendorSlide"]
