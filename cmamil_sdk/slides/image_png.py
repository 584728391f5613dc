"""PNG files: what their chunks say, and their pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import imagecodecs
import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.image_header import (
    DamagedImage,
    ImageHeader,
    UnknownImage,
    exif_orientation,
)

UInt8 = npt.NDArray[np.uint8]

PNG_START = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIB")
_CRC_BYTES = 4


def png_header(data: bytes) -> ImageHeader:
    """Describe a PNG file without decoding its pixels.

    Raises:
        DamagedImage: it is cut short.
        UnknownImage: it is animated, or has 16 bits per sample.
    """
    size: tuple[int, int] | None = None
    orientation = 1
    for kind, content in _chunks(data):
        if kind == b"IHDR" and len(content) >= _HEADER.size:
            width, height, bits = _HEADER.unpack_from(content)
            size = (width, height)
            if bits > 8:
                raise UnknownImage(f"it has {bits} bits per sample; convert it to 8")
        elif kind == b"acTL":
            raise UnknownImage("it is animated; save the one picture that is meant")
        elif kind == b"eXIf":
            orientation = exif_orientation(content)
        elif kind == b"IEND":
            if size is None or 0 in size:
                raise DamagedImage("it says no size")
            return ImageHeader(*size, compression="png", orientation=orientation)
    raise DamagedImage("it is cut short")


def png_pixels(data: bytes) -> UInt8:
    """Pixels ``[height, width]`` or ``[height, width, channels]``; palettes are resolved.

    Channels are grey, grey and alpha, RGB, or RGB and alpha.

    Raises:
        DamagedImage: a checksum is wrong, or data are missing.
    """
    try:
        pixels: UInt8 = imagecodecs.png_decode(data)
    except (imagecodecs.PngError, ValueError) as problem:
        raise DamagedImage(str(problem)) from problem
    return pixels


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each whole chunk; that of image data is left out."""
    start = len(PNG_START)
    while start + _CHUNK.size <= len(data):
        length, kind = _CHUNK.unpack_from(data, start)
        begin = start + _CHUNK.size
        start = begin + length + _CRC_BYTES
        if start > len(data):
            return
        yield kind, b"" if kind == b"IDAT" else data[begin : begin + length]


__all__ = ["PNG_START", "png_header", "png_pixels"]
