"""Plain images and files of other makers: good, spoilt, or not what they claim to be."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from ..slides.tiffs import close_circle, set_entry
from .files import EDGE_PX, Trial, intact_pixels

GROUP = "Plain images and files of other makers"


def _saved(kind: str, **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Image.fromarray(intact_pixels()).save(path, kind, **options)

    return make


def _strips(path: Path) -> None:
    """The intact picture as an untiled TIFF of half a micron per pixel."""
    tifffile.imwrite(
        path,
        intact_pixels(),
        photometric="rgb",
        compression="deflate",
        rowsperstrip=64,
        metadata=None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )


def _trial(
    name: str, what: str, make: Callable[[Path], object], *changes: Callable[[Path], object]
) -> Trial:
    def made(path: Path, _intact: Path) -> None:
        for step in (make, *changes):
            step(path)

    return Trial(GROUP, name, what, made, same_pixels=False)


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _png_of(width: int, height: int, rows: bytes) -> Callable[[Path], None]:
    """A PNG that claims this size, whatever its ``rows`` hold."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    def make(path: Path) -> None:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        data = chunk(b"IDAT", zlib.compress(rows, 1))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))

    return make


def _jpeg_claims(path: Path) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 65_500, 65_500)
    path.write_bytes(data)


def _many_scans(path: Path) -> None:
    data = path.read_bytes()
    scan = data.index(b"\xff\xda")
    path.write_bytes(data[:scan] + data[scan:-2] * 20 + data[-2:])


def _tiff_claims(path: Path) -> None:
    for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
        set_entry(path, tag, 0, 40_000)


def _sixteen_bits(path: Path) -> None:
    grey = intact_pixels()[..., 0].astype(np.uint16) * 200
    if path.suffix == ".png":
        Image.fromarray(grey).save(path)
    else:
        tifffile.imwrite(path, grey, metadata=None)


_PNG, _JPEG = _saved("PNG"), _saved("JPEG")
_FLAT_ROW = bytes(1 + 3 * EDGE_PX)

IMAGES = (
    _trial("png-named.svs", "a PNG", _PNG),
    _trial("png-cut.png", "half of a PNG", _PNG, _halved),
    _trial("png-bit-flipped.png", "a PNG with one bit flipped", _PNG, _bit_flipped),
    _trial("png-claims.png", "claims 2,147,483,647 px along both axes",
           _png_of(2**31 - 1, 2**31 - 1, bytes(1000))),
    _trial("png-bomb.png", "claims 512 x 512 px and unpacks to 100 MB",
           _png_of(EDGE_PX, EDGE_PX, bytes(10**8))),
    _trial("png-short.png", "holds half of the rows it claims",
           _png_of(EDGE_PX, EDGE_PX, EDGE_PX // 2 * _FLAT_ROW)),
    _trial("png-16-bit.png", "16 bits per sample", _sixteen_bits),
    _trial("jpeg-cut.jpg", "half of a JPEG", _JPEG, _halved),
    _trial("jpeg-claims.jpg", "claims 65,500 px along both axes", _JPEG, _jpeg_claims),
    _trial("jpeg-scans.jpg", "200 scans, each over the whole picture",
           _saved("JPEG", progressive=True), _many_scans),
    _trial("tiff-untiled.tif", "an untiled TIFF, 20,000 px per centimetre", _strips),
    _trial("tiff-cut.tif", "half of an untiled TIFF", _strips, _halved),
    _trial("tiff-strip-left-out.tif", "a strip of 0 bytes", _strips,
           lambda path: set_entry(path, "StripByteCounts", 3, 0)),
    _trial("tiff-claims.tif", "claims 40,000 px along both axes, in one strip", _strips,
           _tiff_claims),
    _trial("tiff-circle.tif", "its directory is followed by itself", _strips, close_circle),
    _trial("tiff-16-bit.tif", "16 bits per sample", _sixteen_bits),
    _trial("maker.kfb", "a format read by a plug-in that is not installed",
           lambda path: path.write_bytes(bytes(2048))),
)  # fmt: skip
