"""Plain images, PNG, JPEG and TIFF of one picture, as slides of one level.

They cannot be read in parts, so they are decoded as a whole. Readers of one file that are open at the
same time in a process share its pixels.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt, SlideFormatUnsupported, SlideTooLarge
from cmamil_sdk.slides.base import Closing, Level, SlideFacts
from cmamil_sdk.slides.image_header import DamagedImage, ImageHeader, UnknownImage
from cmamil_sdk.slides.image_jpeg import JPEG_START, jpeg_header, jpeg_pixels
from cmamil_sdk.slides.image_png import PNG_START, png_header, png_pixels
from cmamil_sdk.slides.image_tiff import TIFF_STARTS, tiff_header, tiff_pixels
from cmamil_sdk.slides.pixels import rgb_of, turned
from cmamil_sdk.slides.slide_properties import mpp_facts
from cmamil_sdk.slides.thumbnail import bounds_thumbnail

UInt8 = npt.NDArray[np.uint8]

MAX_IMAGE_PX = 2**28
"""Pixels of the largest image that is decoded as a whole: 16384 x 16384, 0.8 GB."""

IMAGE_STARTS = (PNG_START, JPEG_START, *TIFF_STARTS)
"""First bytes of the files that may be plain images."""

_MAX_FILE_BYTES = 2**30
_WHOLE_FILES = (
    (PNG_START, png_header, png_pixels),
    (JPEG_START, jpeg_header, jpeg_pixels),
)


class ImageReader(Closing):
    """One open image; see :class:`~cmamil_sdk.slides.base.SlideReader` for the contract.

    May be read by several threads at once.

    Raises:
        SlideFormatUnsupported: it is no PNG, JPEG or TIFF, or one of a kind that is not read.
        SlideCorrupt: it is cut short or damaged.
        SlideTooLarge: it has more than ``max_px`` pixels; found out before any is decoded.
    """

    def __init__(self, path: Path, *, mpp: float | None, reason: str, max_px: int) -> None:
        self._path = path
        decoded = _decoded(path, max_px)
        self._decoded: _Decoded | None = decoded
        self.facts = _facts(path, decoded, mpp, reason)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]``; ``level`` is 0, ``x, y`` in its pixels."""
        if level != 0:
            raise IndexError(f"{self._path} has level 0 only, not {level}")
        if self._decoded is None:
            raise ValueError(f"{self._path} is closed")
        image = self._decoded.pixels
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        left, top = max(0, x), max(0, y)
        right, bottom = min(x + width, image.shape[1]), min(y + height, image.shape[0])
        if right > left and bottom > top:
            region[top - y : bottom - y, left - x : right - x] = image[top:bottom, left:right]
        return region

    def thumbnail(self, max_px: int) -> UInt8:
        """The image, ``[h, w, 3]``, neither edge longer than ``max_px``."""
        return bounds_thumbnail(self, max_px)

    def close(self) -> None:
        """Let go of the pixels."""
        self._decoded = None

    def __repr__(self) -> str:
        """How to make this reader again."""
        return f"ImageReader({str(self._path)!r})"


class _Decoded:
    """An image's header and its RGB pixels ``[H, W, 3]``, turned as a viewer shows them."""

    def __init__(self, header: ImageHeader, pixels: UInt8) -> None:
        self.header = header
        self.pixels = pixels


_Identity = tuple[int, int, int, int]
_shared: WeakValueDictionary[_Identity, _Decoded] = WeakValueDictionary()
# One image is decoded at a time, so that several threads opening one file ask for its memory once.
_decoding = threading.Lock()


def is_plain_image(path: Path) -> bool:
    """Whether the file starts like a PNG, JPEG or TIFF."""
    with path.open("rb") as file:
        return file.read(len(PNG_START)).startswith(IMAGE_STARTS)


def _decoded(path: Path, max_px: int) -> _Decoded:
    facts = path.stat()
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    with _decoding:
        known = _shared.get(identity)
        if known is None:
            known = _shared[identity] = _decode(path, max_px)
        else:
            _check_size(path, known.header, max_px)
    return known


def _decode(path: Path, max_px: int) -> _Decoded:
    try:
        header, pixels = _header_and_pixels(path, max_px)
        if pixels.shape[:2] != (header.height, header.width):
            raise DamagedImage("it holds another number of pixels than it says")
    except UnknownImage as problem:
        raise SlideFormatUnsupported(f"{path} cannot be read as an image: {problem}.") from problem
    except DamagedImage as problem:
        raise SlideCorrupt(
            f"{path} is a damaged image: {problem}; copy the file again from its source."
        ) from problem
    shown = turned(rgb_of(pixels), header.orientation)
    shown.setflags(write=False)
    return _Decoded(header, shown)


def _header_and_pixels(path: Path, max_px: int) -> tuple[ImageHeader, UInt8]:
    with path.open("rb") as file:
        start = file.read(len(PNG_START))
    if start.startswith(TIFF_STARTS):
        header = tiff_header(path)
        _check_size(path, header, max_px)
        return header, tiff_pixels(path)
    for its_start, header_of, pixels_of in _WHOLE_FILES:
        if start.startswith(its_start):
            data = _content(path)
            header = header_of(data)
            _check_size(path, header, max_px)
            return header, pixels_of(data)
    raise UnknownImage("it is no PNG, JPEG or TIFF; convert it to one of them")


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(min(os.fstat(file.fileno()).st_size, _MAX_FILE_BYTES) + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise SlideTooLarge(
            f"{path} has more than {_MAX_FILE_BYTES} bytes, and images are read as a whole; "
            "convert it to a pyramidal tiled TIFF."
        )
    return data


def _check_size(path: Path, header: ImageHeader, max_px: int) -> None:
    if header.width * header.height > max_px:
        raise SlideTooLarge(
            f"{path} has {header.width} x {header.height} pixels, and an image that is decoded as a "
            f"whole may have {max_px}; convert it to a pyramidal tiled TIFF, which is read in parts."
        )


def _facts(path: Path, decoded: _Decoded, override: float | None, reason: str) -> SlideFacts:
    header = decoded.header
    height, width = decoded.pixels.shape[:2]
    stated = header.mpp or (None, None)
    mpp = mpp_facts(*stated, override=override)
    return SlideFacts(
        path=str(path),
        slide_id=path.stem,
        width=width,
        height=height,
        bounds=(0, 0, width, height),
        levels=(Level(width, height, 1.0),),
        mpp=mpp.mpp,
        mpp_source=mpp.source,
        mpp_problem=mpp.problem,
        objective_power=None,
        vendor="unknown",
        compression=header.compression,
        reader="image",
        reader_reason=reason,
        warnings=(*header.warnings, *mpp.warnings),
    )


__all__ = ["IMAGE_STARTS", "MAX_IMAGE_PX", "ImageReader", "is_plain_image"]
