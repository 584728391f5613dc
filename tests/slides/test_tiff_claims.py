"""What a TIFF claims is looked at before OpenSlide believes it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.tiff_claims import tiff_claims
from cmamil_sdk.slides.tiff_pages import tiff_pages

from .tiffs import picture, set_entry, write_levels


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """260 x 200 px in 64 px tiles, 5 columns and 4 rows; and half of that."""
    pixels = picture(200, 260)
    return write_levels(tmp_path / "plain.tiff", [pixels, pixels[::2, ::2]])


def test_an_honest_file_claims_nothing(plain: Path) -> None:
    claims = tiff_claims(plain)
    assert (claims.compression, claims.oversized, claims.warnings) == ("jpeg", {}, ())
    with tiff_pages(plain) as pages:
        assert [(page.imagewidth, page.imagelength) for page in pages] == [(260, 200), (130, 100)]


def test_what_is_no_tiff_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no TIFF")
    assert tiff_claims(tmp_path / "text").compression is None
    assert tiff_claims(tmp_path / "absent").compression is None


@pytest.mark.parametrize("count", [2**32 - 1, 500_000])
def test_only_the_tile_that_claims_too_much_is_refused(plain: Path, count: int) -> None:
    """Column 2, row 1; OpenSlide would ask for as much memory, and die without it."""
    set_entry(plain, "TileByteCounts", 7, count)
    with open_slide(plain, reader="openslide") as reader:
        for box in ((128, 64, 64, 64), (100, 60, 29, 5), (191, 127, 1, 1), (0, 0, 260, 200)):
            with pytest.raises(SlideCorrupt, match="more bytes than it can have"):
                reader.read_region(0, *box)
        for box in ((64, 64, 64, 64), (192, 64, 64, 64), (128, 0, 64, 64), (128, 128, 64, 64)):
            assert reader.read_region(0, *box).std() > 0
        assert reader.read_region(1, 0, 0, 130, 100).std() > 0


def test_a_level_between_whole_pixels_keeps_clear_of_the_neighbours(tmp_path: Path) -> None:
    pixels = picture(400, 520)
    path = write_levels(tmp_path / "odd.tiff", [pixels, pixels[:390:4, ::4][:97, :129]])
    set_entry(path, "TileByteCounts", 0, 2**32 - 1, page=1)
    with open_slide(path, reader="openslide") as reader:
        assert not reader.facts.levels[1].downsample.is_integer()
        with pytest.raises(SlideCorrupt):
            reader.read_region(1, 64, 0, 8, 8)
        assert reader.read_region(1, 66, 0, 8, 8).std() > 0


def test_tiles_that_are_left_out_are_counted(plain: Path) -> None:
    set_entry(plain, "TileByteCounts", 3, 0)
    set_entry(plain, "TileByteCounts", 4, 0)
    with open_slide(plain) as reader:
        assert reader.facts.warnings == (
            "2 of 20 tiles of level 0 are not stored; they are read as white glass.",
        )


def test_directories_in_a_circle_end(plain: Path) -> None:
    with tiff_pages(plain) as pages:
        first, last = pages[0].offset, pages[-1].offset
    with plain.open("r+b") as raw:
        raw.seek(last)
        entries = struct.unpack("<H", raw.read(2))[0]
        raw.seek(last + 2 + 12 * entries)
        raw.write(struct.pack("<I", first))
    with pytest.raises(tifffile.TiffFileError, match="circle"), tiff_pages(plain):
        pass
    assert tiff_claims(plain).compression is None
    with pytest.raises(SlideCorrupt, match="damaged"):
        open_slide(plain)


def test_directories_without_number_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.tiff"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(5):
            writer.write(np.zeros((16, 16), np.uint8), metadata=None)
    with tiff_pages(path) as pages:
        assert len(pages) == 5
    monkeypatch.setattr("cmamil_sdk.slides.tiff_pages._MAX_DIRECTORIES", 4)
    with pytest.raises(tifffile.TiffFileError, match="more than 4"), tiff_pages(path):
        pass


@pytest.mark.parametrize(("tag", "value"), [("ImageWidth", 130), ("ImageLength", 1000)])
def test_an_image_of_another_size_than_its_tiles_is_refused(
    plain: Path, tag: str, value: int
) -> None:
    """OpenSlide would put the tiles in other places, and white where none are left."""
    set_entry(plain, tag, 0, value)
    for reader in ("auto", "openslide"):
        with pytest.raises(SlideCorrupt, match=r"lists 20 tiles instead of \d+"):
            open_slide(plain, reader=reader)


def test_planes_are_counted_each(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "planes.tiff",
        np.zeros((3, 200, 260), np.uint8),
        tile=(64, 64),
        photometric="rgb",
        planarconfig="separate",
        compression="jpeg",
        metadata=None,
    )
    assert tiff_claims(tmp_path / "planes.tiff").compression == "jpeg"
