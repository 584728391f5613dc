"""JPEG 2000 tiles: whether the codestream a TIFF stores is whole, without decoding it.

After ISO/IEC 15444-1, annex A. OpenJPEG gives pixels for a codestream that is cut short or overwritten,
and only sometimes a warning.
"""

from __future__ import annotations

import re
import struct

from cmamil_sdk.slides.jpeg_tiles import DamagedTile

_SOC, _SIZ, _COD, _SOT, _SOD, _EOC = b"\xff\x4f", 0xFF51, 0xFF52, 0xFF90, 0xFF93, b"\xff\xd9"
_COMPONENTS = 3
_BITS_8_UNSIGNED = 7
_MARKERS_IN_PACKETS = 0b110
"""Bits of a COD's first byte: packets may hold the markers SOP and EPH."""

# Coded bits never hold a byte above 0x8F after 0xFF.
_NO_CODED_BITS = re.compile(rb"\xff[\x90-\xff]")


def check_codestream(tile: bytes, width: int, height: int) -> None:
    """Refuse a codestream that is not one whole image of exactly this size.

    Its start, headers, the lengths of its parts and its end are checked, and that the coded bits hold no
    byte pair that cannot be in them. Damage that keeps to all this, zeros above all, is not seen.

    Args:
        tile: what the file stores.
        width: pixels.
        height: pixels.

    Raises:
        DamagedTile: one of these is wrong.
    """
    if not tile.startswith(_SOC):
        raise DamagedTile("it does not start as a JPEG 2000 codestream")
    try:
        _check_size(tile, width, height)
        position, with_markers = _main_header(tile)
        while tile[position : position + 2] != _EOC:
            position = _check_part(tile, position, with_markers)
    except (struct.error, IndexError) as problem:
        raise DamagedTile("it ends too early") from problem
    if tile[position + 2 :].strip(b"\0"):
        raise DamagedTile("it goes on after its end")


def _check_size(tile: bytes, width: int, height: int) -> None:
    (marker,) = struct.unpack_from(">H", tile, 2)
    right, bottom, left, top = struct.unpack_from(">4I", tile, 8)
    (components,) = struct.unpack_from(">H", tile, 40)
    if (marker, right - left, bottom - top, components) != (_SIZ, width, height, _COMPONENTS):
        raise DamagedTile(
            f"it has {right - left} x {bottom - top} pixels of {components} components instead of "
            f"{width} x {height} pixels of {_COMPONENTS}"
        )
    if any(tile[42 + 3 * n] != _BITS_8_UNSIGNED for n in range(_COMPONENTS)):
        raise DamagedTile("its components do not have 8 bits")


def _main_header(tile: bytes) -> tuple[int, bool]:
    """Where the first part starts, and whether packets may hold markers."""
    position, with_markers = len(_SOC), False
    while True:
        marker, length = struct.unpack_from(">HH", tile, position)
        if marker == _SOT:
            return position, with_markers
        if marker < 0xFF00 or length < 2:
            raise DamagedTile("its header is damaged")
        if marker == _COD:
            with_markers = bool(tile[position + 4] & _MARKERS_IN_PACKETS)
        position += 2 + length


def _check_part(tile: bytes, start: int, with_markers: bool) -> int:
    """Check one tile-part; returns where the next begins."""
    marker, length, _, size = struct.unpack_from(">HHHI", tile, start)
    if (marker, length) != (_SOT, 10):
        raise DamagedTile("its parts do not follow each other")
    # A size of 0: this part is the last and reaches to the end.
    end = start + size if size else len(tile.rstrip(b"\0")) - len(_EOC)
    position = start + 2 + length
    while (found := struct.unpack_from(">H", tile, position)[0]) != _SOD:
        length = struct.unpack_from(">H", tile, position + 2)[0]
        if found < 0xFF00 or length < 2:
            raise DamagedTile("the header of a part is damaged")
        position += 2 + length
    if not position + 2 <= end <= len(tile) - len(_EOC):
        raise DamagedTile("one of its parts reaches beyond its end")
    if not with_markers and _NO_CODED_BITS.search(tile, position + 2, end):
        raise DamagedTile("its coded bits are overwritten")
    return end


__all__ = ["check_codestream"]
