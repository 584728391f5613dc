"""JPEG tiles as TIFF stores them: without their tables, and often without saying what colours they hold.

Decoded by libjpeg-turbo, as OpenSlide does it, so pixels are the same to the last bit. Here a warning of
libjpeg is an error: behind it are grey or smeared pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from simplejpeg import decode_jpeg

UInt8 = npt.NDArray[np.uint8]

_SOI, _EOI = b"\xff\xd8", 0xD9
_SOS, _APP0, _APP14 = 0xDA, 0xE0, 0xEE
_COMPONENTS = 3
_SEQUENTIAL = (0xC0, 0xC1)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of segments that state an image's size, one for each way of coding."""
_SHARED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_ADOBE = struct.Struct(">2sH5s3HB")


class DamagedTile(Exception):
    """A tile, or the tables that tiles share, cannot be decoded; says why."""


def tile_prefix(tables: bytes | None, *, ycbcr: bool) -> bytes:
    """What goes before every tile of a level: start, colour space, and the tables that tiles share.

    Args:
        tables: the directory's JPEGTables, or None.
        ycbcr: whether the directory's photometric tag says YCbCr, else RGB. The tag alone counts, as
            for OpenSlide: Aperio's RGB tiles do not say in themselves what they are.

    Raises:
        DamagedTile: the tables are none, or hold an image.
    """
    colours = _ADOBE.pack(b"\xff\xee", 14, b"Adobe", 100, 0, 0, int(ycbcr))
    if tables is None:
        return _SOI + colours
    end = len(_SOI)
    for marker, _, after in segments(tables):
        if marker == _EOI:
            return _SOI + colours + tables[len(_SOI) : end]
        if marker not in _SHARED:
            raise DamagedTile(f"its JPEG tables hold a segment 0x{marker:02x}")
        end = after
    raise DamagedTile("its JPEG tables have no end")


def decode_tile(tile: bytes, prefix: bytes, width: int, height: int) -> UInt8:
    """Pixels ``[height, width, 3]`` RGB of a tile that must be of exactly this size.

    Args:
        tile: what the file stores.
        prefix: of :func:`tile_prefix`.
        width: pixels.
        height: pixels.

    Raises:
        DamagedTile: it is cut short, corrupt, or of another size.
    """
    try:
        pixels: UInt8 = decode_jpeg(prefix + _without_colours(tile, width, height), "RGB")
    except ValueError as problem:
        raise DamagedTile(str(problem)) from problem
    return pixels


def check_tile(tile: bytes, width: int, height: int) -> None:
    """Refuse, without decoding it, a tile that is not one whole image of exactly this size.

    Raises:
        DamagedTile: its start, header, size or end is wrong; damage in between is not seen.
    """
    _without_colours(tile, width, height)
    if not tile.rstrip(b"\0").endswith(bytes((0xFF, _EOI))):
        raise DamagedTile("it has no end")


def _without_colours(tile: bytes, width: int, height: int) -> bytes:
    """The tile after its start, less the segments that name a colour space (JFIF, Adobe).

    The size is checked here, before libjpeg asks for memory.
    """
    kept: list[bytes] = []
    framed = False
    for marker, start, after in segments(tile):
        if marker == _SOS:
            # All components in one scan: libjpeg then decodes one pass, however many scans follow.
            if not framed or tile[start + 4] != _COMPONENTS:
                raise DamagedTile("it is no sequential JPEG image of one scan")
            return b"".join([*kept, tile[start:]])
        if marker in FRAMES:
            framed = True
            _check_frame(marker, tile[start + 4 : after], width, height)
        if marker not in (_APP0, _APP14):
            kept.append(tile[start:after])
    raise DamagedTile("it holds no image")


def _check_frame(marker: int, frame: bytes, width: int, height: int) -> None:
    if marker not in _SEQUENTIAL or len(frame) < 6:
        raise DamagedTile("it is no sequential JPEG image of one scan")
    bits, *size, components = struct.unpack_from(">BHHB", frame)
    if (bits, *size, components) != (8, height, width, _COMPONENTS):
        raise DamagedTile(
            f"it has {size[1]} x {size[0]} pixels of {components} components with {bits} bits instead "
            f"of {width} x {height} pixels of {_COMPONENTS} with 8"
        )


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker of each segment, where it starts, and where the next one does.

    Stop at the first scan: what follows it is no segment.

    Raises:
        DamagedTile: the data are no JPEG image, or end within a segment.
    """
    if not data.startswith(_SOI):
        raise DamagedTile("it does not start as a JPEG image")
    start = len(_SOI)
    while start + 1 < len(data):
        if data[start] != 0xFF:
            raise DamagedTile("it holds bytes between its segments")
        marker = data[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        if marker in _WITHOUT_LENGTH:
            after = start + 2
        else:
            length = int.from_bytes(data[start + 2 : start + 4], "big")
            after = start + 2 + length
            if length < 2 or after > len(data):
                break
        yield marker, start, after
        start = after
    raise DamagedTile("it ends within its header")


__all__ = ["FRAMES", "DamagedTile", "check_tile", "decode_tile", "segments", "tile_prefix"]
