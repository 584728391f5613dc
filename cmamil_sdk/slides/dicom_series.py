"""Files of one DICOM series: OpenSlide opens the whole slide from any of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import openslide

_SUFFIX = ".dcm"
_SERIES = "dicom.SeriesInstanceUID"

# Of a file's head as DICOM PS3.5 and PS3.10 lay it out: tags as (group, element).
_META_GROUP = 0x0002
_TRANSFER_SYNTAX, _SERIES_UID = (0x0002, 0x0010), (0x0020, 0x000E)
_SEQUENCE_END = (0xFFFE, 0xE0DD)
_ITEM_GROUP = 0xFFFE
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_UNDEFINED = 0xFFFFFFFF
_MOST_ELEMENTS, _MOST_UID_BYTES = 10_000, 64


def one_of_each_series(paths: Sequence[Path]) -> list[Path]:
    """The paths less those of DICOM files (``.dcm``) whose series in that folder came before.

    What OpenSlide does not open stays. Opening one looks into every file beside it.
    """
    kept: list[Path] = []
    seen: set[tuple[Path, str]] = set()
    for path in paths:
        series = _series(path) if path.suffix.lower() == _SUFFIX else None
        if series is not None:
            if (path.parent, series) in seen:
                continue
            seen.add((path.parent, series))
        kept.append(path)
    return kept


def series_files(path: Path) -> list[Path]:
    """The files in the folder of a DICOM file that belong to its series, itself among them, sorted.

    There are none if the file's head does not say its series, or in a form that slides do not have.
    """
    series = _series_uid(path)
    if series is None:
        return []
    beside = (p for p in path.parent.iterdir() if p.suffix.lower() == _SUFFIX and p.is_file())
    return sorted(p for p in beside if _series_uid(p) == series)


def _series_uid(path: Path) -> str | None:
    """SeriesInstanceUID as the head of a DICOM file has it; None of what is none, or cannot be read."""
    try:
        with path.open("rb") as file:
            return _find_series(file) if file.read(132)[128:] == b"DICM" else None
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _find_series(file: BinaryIO) -> str | None:
    explicit, within = True, 0  # sequences of undefined length that have begun
    for _ in range(_MOST_ELEMENTS):
        tag: tuple[int, int] = struct.unpack("<HH", file.read(4))
        if tag[0] != _META_GROUP and not within and tag > _SERIES_UID:
            return None
        length = _length(file, explicit=(explicit or tag[0] == _META_GROUP), tag=tag)
        if tag == _SEQUENCE_END:
            within -= 1
        elif tag[0] == _ITEM_GROUP:
            continue  # what it holds comes next, or it is an item's end
        elif length == _UNDEFINED:
            within += 1
        elif tag == _TRANSFER_SYNTAX or (tag == _SERIES_UID and not within):
            value = _uid(file, length)
            if tag == _SERIES_UID:
                return value
            if value in (_BIG_ENDIAN, _DEFLATED):
                return None
            explicit = value != _IMPLICIT
        else:
            file.seek(length, 1)
    return None


def _uid(file: BinaryIO, length: int) -> str:
    text = file.read(min(length, _MOST_UID_BYTES))
    if len(text) != length:
        raise struct.error(f"no identifier of {length} bytes")
    return text.decode("ascii").strip("\0 ")


def _length(file: BinaryIO, *, explicit: bool, tag: tuple[int, int]) -> int:
    """Bytes of the value that follows."""
    if not explicit or tag[0] == _ITEM_GROUP:
        (length,) = struct.unpack("<I", file.read(4))
    elif (kind := file.read(2)) in _LONG:
        (length,) = struct.unpack("<2xI", file.read(6))
    elif kind.isalpha() and kind.isupper():
        (length,) = struct.unpack("<H", file.read(2))
    else:
        raise struct.error(f"no kind of value: {kind!r}")
    return int(length)


def _series(path: Path) -> str | None:
    """SeriesInstanceUID of a slide; None of what is no DICOM slide that could be opened."""
    if not path.is_file():
        return None  # OpenSlide would wait for what a pipe brings
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get(_SERIES)
    except openslide.OpenSlideError:
        return None


__all__ = ["one_of_each_series", "series_files"]
