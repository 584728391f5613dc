"""What a plain image says of itself before its pixels are decoded, by the same words for every format."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ORIENTATION_TAG = 0x0112
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}


class DamagedImage(Exception):
    """The file is cut short or corrupt; says how."""


class UnknownImage(Exception):
    """The file is whole, but of a kind that is not read; says what differs and what to convert to."""


@dataclass(frozen=True)
class ImageHeader:
    """One image as it is stored.

    Attributes:
        width, height: stored pixels, before ``orientation`` is applied.
        compression: ``png``, ``jpeg``, or the TIFF's name for it.
        orientation: EXIF's number, 1 to 8: how the stored pixels are turned for a viewer.
        mpp: microns per pixel along the stored x and y, where the file can be trusted to know; else None.
        warnings: what a user should know of the file.
    """

    width: int
    height: int
    compression: str
    orientation: int = 1
    mpp: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, which are a TIFF without pixels; 1 where they say none.

    Raises:
        DamagedImage: the data are no EXIF.
    """
    order = _BYTE_ORDERS.get(exif[:2])
    if order is None:
        raise DamagedImage("its EXIF data state no byte order")
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for number in range(entries):
            place = directory + 2 + 12 * number
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION_TAG:
                return known_orientation(value)
    except struct.error as problem:
        raise DamagedImage(f"its EXIF data cannot be read ({problem})") from problem
    return 1


def known_orientation(value: object) -> int:
    """``value`` if it is one of the eight orientations; 1 for any other, as viewers take it."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


__all__ = [
    "DamagedImage",
    "ImageHeader",
    "UnknownImage",
    "exif_orientation",
    "known_orientation",
]
