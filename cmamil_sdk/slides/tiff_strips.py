"""Bytes of a TIFF's strip or tile, by decoders that stand damaged data.

imagecodecs' decoder of LZW writes beyond its memory when the data are damaged; libtiff, which Pillow
holds, does not.
"""

from __future__ import annotations

import io
import struct
import zlib

from PIL.TiffImagePlugin import TiffImageFile

_LONG = 4
_HEADER_BYTES = 8
_ENTRY = struct.Struct("<HHII")


def inflated(data: bytes, size: int) -> bytes:
    """``size`` bytes, and hardly more whatever the data would grow to: one, to reach the checksum.

    Raises:
        zlib.error: the data are damaged.
    """
    return zlib.decompressobj().decompress(data, size + 1)


def unpacked_by_libtiff(data: bytes, size: int, *, lzw: bool) -> bytes:
    """``size`` bytes of LZW, else of PackBits, decoded as the one grey row of a TIFF around them.

    Raises:
        OSError: the data are damaged or hold less.
    """
    tags = {
        256: size,  # ImageWidth
        257: 1,  # ImageLength
        258: 8,  # BitsPerSample
        259: 5 if lzw else 32773,  # Compression
        262: 1,  # PhotometricInterpretation: black is zero
        273: 0,  # StripOffsets, set below
        277: 1,  # SamplesPerPixel
        278: 1,  # RowsPerStrip
        279: len(data),  # StripByteCounts
    }
    tags[273] = _HEADER_BYTES + 2 + _ENTRY.size * len(tags) + 4
    directory = b"".join(_ENTRY.pack(tag, _LONG, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHIH", b"II", 42, _HEADER_BYTES, len(tags))
    with TiffImageFile(io.BytesIO(start + directory + bytes(4) + data)) as image:
        return image.tobytes()


__all__ = ["inflated", "unpacked_by_libtiff"]
