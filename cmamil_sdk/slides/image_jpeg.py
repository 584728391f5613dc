"""JPEG files: what their segments say, and their pixels."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from simplejpeg import decode_jpeg

from cmamil_sdk.slides.image_header import (
    DamagedImage,
    ImageHeader,
    UnknownImage,
    exif_orientation,
)
from cmamil_sdk.slides.jpeg_tiles import FRAMES, DamagedTile, segments

UInt8 = npt.NDArray[np.uint8]

JPEG_START = b"\xff\xd8\xff"
_EXIF_START = b"Exif\0\0"
_SCAN, _APP1 = 0xDA, 0xE1
_SCAN_START = b"\xff\xda"
_DECODED_FRAMES = (0xC0, 0xC1, 0xC2)
_FRAME = struct.Struct(">BHHB")
_MAX_SCANS = 100


def jpeg_header(data: bytes) -> ImageHeader:
    """Describe a JPEG file without decoding its pixels; further pictures behind the first do not count.

    Raises:
        DamagedImage: it is cut short, or claims more scans than any program writes.
        UnknownImage: it is CMYK, lossless, or has another number of bits than 8.
    """
    size: tuple[int, int] | None = None
    orientation = 1
    try:
        for marker, start, after in segments(data):
            content = data[start + 4 : after]
            if marker in FRAMES:
                size = _frame_size(marker, content)
            elif marker == _APP1 and content.startswith(_EXIF_START):
                orientation = exif_orientation(content[len(_EXIF_START) :])
            elif marker == _SCAN:
                break
    except DamagedTile as problem:
        raise DamagedImage(str(problem)) from problem
    if size is None or 0 in size:
        raise DamagedImage("it says no size")
    # Each scan goes over the whole picture again, however few bytes it has.
    if data.count(_SCAN_START) > _MAX_SCANS:
        raise DamagedImage(f"it claims more than {_MAX_SCANS} scans")
    return ImageHeader(*size, compression="jpeg", orientation=orientation)


def jpeg_pixels(data: bytes) -> UInt8:
    """Pixels ``[height, width, 3]`` RGB.

    Raises:
        DamagedImage: libjpeg fails or warns; behind a warning are grey or smeared pixels.
    """
    try:
        pixels: UInt8 = decode_jpeg(data, "RGB")
    except ValueError as problem:
        raise DamagedImage(str(problem)) from problem
    return pixels


def _frame_size(marker: int, frame: bytes) -> tuple[int, int]:
    """Width and height."""
    if len(frame) < _FRAME.size:
        raise DamagedImage("it ends within its header")
    bits, height, width, components = _FRAME.unpack_from(frame)
    if components == 4:
        raise UnknownImage("it is CMYK; convert it to RGB")
    if marker not in _DECODED_FRAMES or bits != 8 or components not in (1, 3):
        raise UnknownImage(
            f"it has {components} components of {bits} bits, coded by process 0x{marker:02x}; "
            "save it as an ordinary RGB JPEG"
        )
    return width, height


__all__ = ["JPEG_START", "jpeg_header", "jpeg_pixels"]
