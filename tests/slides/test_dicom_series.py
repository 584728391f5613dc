"""Which files of a folder belong to one DICOM series, told by their heads."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import openslide
import pytest

from cmamil_sdk.errors import SlideCorrupt, SlideNotFound
from cmamil_sdk.slides.dicom_series import series_files
from cmamil_sdk.slides.unchanged import unchanged

JPEG_BASELINE, IMPLICIT, BIG_ENDIAN = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
)


def explicit(group: int, element: int, kind: str, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    is_long = kind in ("SQ", "OB", "UN")
    layout = "<HH2s2xI" if is_long else "<HH2sH"
    return struct.pack(layout, group, element, kind.encode(), size) + value


def implicit(group: int, element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", group, element, len(value)) + value


def item(value: bytes, length: int) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, length) + value


def dicom(series: str, syntax: str = JPEG_BASELINE) -> bytes:
    """A file's head; other series are referred to in sequences of all lengths before its own is named."""
    meta = explicit(2, 1, "OB", b"\0\1") + explicit(2, 0x10, "UI", syntax.encode())
    head = bytes(128) + b"DICM" + meta
    own = series.encode() + b"\0" * (len(series) % 2)
    if syntax == IMPLICIT:
        referred = item(implicit(0x20, 0xE, b"1.99"), 12)
        return head + implicit(8, 0x1115, referred) + implicit(0x20, 0xE, own)
    referred = explicit(0x20, 0xE, "UI", b"1.99")
    end_of_item, end = item(b"", 0)[:2] + b"\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4)
    open_item = item(referred, 0xFFFFFFFF) + end_of_item
    nested = explicit(8, 0x1115, "SQ", open_item + end, 0xFFFFFFFF)
    return b"".join(
        (
            head,
            explicit(8, 0x1115, "SQ", item(referred, len(referred))),
            explicit(
                8, 0x1140, "SQ", item(referred, len(referred)) + item(nested, 2**32 - 1), 2**32 - 1
            ),
            end_of_item,
            end,
            explicit(0x20, 0xD, "UI", b"1.98"),
            explicit(0x20, 0xE, "UI", own),
            explicit(0x28, 0x10, "US", b"\0\1"),
        )
    )


@pytest.mark.parametrize("syntax", [JPEG_BASELINE, IMPLICIT])
def test_files_of_the_series_alone(tmp_path: Path, syntax: str) -> None:
    for name, series in (
        ("b.dcm", "1.2.3"),
        ("a.DCM", "1.2.3"),
        ("c.dcm", "1.2.30"),
        ("d", "1.2.3"),
    ):
        (tmp_path / name).write_bytes(dicom(series, syntax))
    (tmp_path / "e.dcm").mkdir()
    os.mkfifo(tmp_path / "f.dcm")
    (tmp_path / "g.dcm").symlink_to("nowhere.dcm")
    assert [p.name for p in series_files(tmp_path / "b.dcm")] == ["a.DCM", "b.dcm"]
    assert [p.name for p in series_files(tmp_path / "c.dcm")] == ["c.dcm"]


def test_a_head_that_does_not_say_it(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.dcm", dicom("1.2.3")
    for size in range(0, len(whole) - 10, 7):
        path.write_bytes(whole[:size])
        assert series_files(path) == []
    endless = (
        bytes(128) + b"DICM" + explicit(8, 0x1115, "SQ", b"", 2**32 - 1) + item(b"", 0) * 20_000
    )
    for content in (dicom("1.2.3", BIG_ENDIAN), b"text", whole.replace(b"UI", b"??"), endless):
        path.write_bytes(content)
        assert series_files(path) == []


def test_the_whole_series_is_watched(tmp_path: Path) -> None:
    named, part, other = (tmp_path / f"{name}.dcm" for name in ("named", "part", "other"))
    for path, series in ((named, "1.2.3"), (part, "1.2.3"), (other, "1.2.4")):
        path.write_bytes(dicom(series))
    with unchanged(named):
        other.write_bytes(dicom("1.2.4") + b"grows")
    with pytest.raises(SlideCorrupt, match=r"part\.dcm changed"), unchanged(named):
        part.write_bytes(dicom("1.2.3") + b"other pixels")
    with pytest.raises(SlideNotFound, match=r"part\.dcm vanished"), unchanged(named):
        part.unlink()


@pytest.mark.realdata
def test_it_is_the_series_that_openslide_tells(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "slides" / "camelyon-lowpower-jpeg.dcm"
    with openslide.OpenSlide(path) as slide:
        series = slide.properties["dicom.SeriesInstanceUID"]
    (tmp_path / "head.dcm").write_bytes(dicom(series))
    (tmp_path / "slide.dcm").symlink_to(path)
    assert len(series_files(tmp_path / "slide.dcm")) == 2
