"""The direct reader: OpenSlide's pixels to the last bit, or OpenSlide itself, with the reason."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import FieldInvalid, SlideCorrupt, SlideFormatUnsupported
from cmamil_sdk.slides import direct_reader, open_slide
from cmamil_sdk.slides.decoded_tiles import DecodedTiles
from cmamil_sdk.slides.jpeg_tiles import decode_tile
from cmamil_sdk.slides.tiff_grids import tile_grids

from .tiffs import (
    only,
    picture,
    rgb,
    set_entry,
    spoil_tile,
    tile_span,
    without,
    write_levels,
    ycbcr,
)

REAL = ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.svs", "small.svs")
JFIF, ADOBE, TABLES = 0xE0, 0xEE, (0xC4, 0xDB)


def same_everywhere(path: Path, boxes: list[tuple[int, int, int, int, int]]) -> None:
    with open_slide(path, reader="direct") as ours, open_slide(path, reader="openslide") as theirs:
        assert ours.facts.reader == "direct"
        assert replace(
            ours.facts, reader="openslide", reader_reason=theirs.facts.reader_reason
        ) == (theirs.facts)
        for level, x, y, width, height in boxes:
            got = ours.read_region(level, x, y, width, height)
            assert got.shape == (height, width, 3)
            expected = theirs.read_region(level, x, y, width, height)
            assert (got == expected).all(), (level, x, y, width, height)


def telling_boxes(path: Path) -> list[tuple[int, int, int, int, int]]:
    """Per level: all of it and its surroundings, tile borders, each edge, and beyond."""
    boxes = []
    with open_slide(path, reader="openslide") as reader:
        for number, level in enumerate(reader.facts.levels):
            w, h = level.width, level.height
            places = [
                *((-20, -10, w + 50, h + 40), (0, 0, min(w, 256), min(h, 256))),
                *((w // 3, h // 3, 300, 200), (w - 37, h - 53, 90, 80), (w // 2, -5, 7, h + 9)),
                *((-9, h // 2, w + 20, 3), (w, h, 5, 6), (w + 90, -90, 400, 40), (-80, 0, 40, 40)),
            ]
            boxes += [(number, *place) for place in places]
    return boxes


@pytest.mark.realdata
@pytest.mark.parametrize("name", REAL)
def test_real_slides_are_read_as_openslide_does(real_data, name):
    path = real_data / "slides" / name
    same_everywhere(path, telling_boxes(path))


def test_a_generated_slide_is_read_as_openslide_does(noisy_slide, synthetic_slide):
    for path in (noisy_slide, synthetic_slide):
        same_everywhere(path, telling_boxes(path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_is_what_openslide_reads(noisy_slide, data):
    level = data.draw(st.integers(0, 2))
    width, height = ((700, 500), (175, 125), (43, 31))[level]
    box = (
        data.draw(st.integers(-150, width + 150)),
        data.draw(st.integers(-150, height + 150)),
        data.draw(st.integers(1, width + 200)),
        data.draw(st.integers(1, height + 200)),
    )
    same_everywhere(noisy_slide, [(level, *box)])


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    tile_px=st.sampled_from([16, 48, 64, 240]),
    seed=st.integers(0, 99),
)
def test_any_size_of_slide_and_tile(tmp_path_factory, width, height, tile_px, seed):
    path = tmp_path_factory.mktemp("sizes") / "any.tiff"
    write_levels(path, [picture(height, width, seed)], tile_px=tile_px)
    same_everywhere(path, telling_boxes(path))


def test_levels_of_a_whole_downsample_are_decoded_here_the_others_by_openslide(tmp_path):
    pixels = picture(400, 520)
    path = tmp_path / "levels.tiff"
    write_levels(path, [pixels, pixels[::2, ::2], pixels[:390:4, ::4][:97, :129]])
    same_everywhere(path, telling_boxes(path))
    with open_slide(path) as reader:
        assert [level.downsample.is_integer() for level in reader.facts.levels] == [
            True,
            True,
            False,
        ]
        assert reader.facts.reader_reason == (
            "JPEG tiles, the same as OpenSlide's at 8 places; OpenSlide resamples and reads level 2"
        )


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440"])
def test_subsampling(tmp_path, subsampling):
    path = write_levels(tmp_path / "s.tiff", [picture(150, 200)], encode=ycbcr(subsampling))
    same_everywhere(path, telling_boxes(path))


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("encode", [rgb, ycbcr("444")])
@pytest.mark.parametrize("dropped", [(), (JFIF, ADOBE)])
def test_colours_follow_the_photometric_tag_whatever_the_tiles_say(
    tmp_path, photometric, encode, dropped
):
    path = write_levels(
        tmp_path / "colours.tiff",
        [picture(100, 130)],
        photometric=photometric,
        encode=encode,
        change=lambda tile: without(tile, *dropped),
    )
    same_everywhere(path, telling_boxes(path))


@pytest.mark.parametrize("bigtiff", [False, True])
def test_shared_tables_and_bigtiff(tmp_path, bigtiff):
    pixels = picture(130, 200)
    path = write_levels(
        tmp_path / "tables.tiff",
        [pixels],
        bigtiff=bigtiff,
        change=lambda tile: without(tile, *TABLES),
        jpegtables=only(ycbcr()(pixels[:64, :64]), *TABLES),
    )
    same_everywhere(path, telling_boxes(path))


def test_openslide_can_be_asked_for(noisy_slide):
    with open_slide(noisy_slide, reader="openslide") as reader:
        assert (reader.facts.reader, reader.facts.reader_reason) == ("openslide", "asked for")
    with pytest.raises(FieldInvalid, match=r"no reader 'none'.*auto, direct, cucim, openslide"):
        open_slide(noisy_slide, reader="none")


def falls_back(path: Path, reason: str) -> None:
    """``auto`` takes OpenSlide and says why; ``direct`` refuses with the same words."""
    with open_slide(path) as reader:
        assert reader.facts.reader == "openslide"
        assert reader.facts.reader_reason == f"not read directly, because {reason}"
    with pytest.raises(SlideFormatUnsupported) as refused:
        open_slide(path, reader="direct")
    assert str(refused.value) == (
        f"{path} cannot be read directly: {reason}; leave --reader out, or choose openslide."
    )


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("boxes.tiff", "level 0 is stored as adobe_deflate, not jpeg"),
        ("tcga-cr-7395-01a-01-ts1.svs", "level 0 is stored as aperio_jp2000_rgb, not jpeg"),
        ("camelyon-lowpower-jpeg.dcm", "files of vendor dicom are not known to be plain grids"),
        ("unreadable.svs", "no tile that was tried in level 0 can be decoded"),
    ],
)
def test_real_slides_that_are_left_to_openslide(real_data, name, reason):
    falls_back(real_data / "slides" / name, reason)


def test_a_file_that_leaves_out_tiles_is_left_to_openslide(noisy_slide, tmp_path):
    """Tiles of glass may be left out: white at level 0, drawn from the finer level elsewhere."""
    path = tmp_path / "sparse.svs"
    path.write_bytes(noisy_slide.read_bytes())
    set_entry(path, "TileByteCounts", 4, 0)
    set_entry(path, "TileByteCounts", 9, 0)
    falls_back(path, "level 0 leaves out 2 of 35 tiles")
    with open_slide(path) as reader:
        assert (reader.read_region(0, 448, 0, 112, 112) == 255).all()


@pytest.fixture
def plain(tmp_path) -> Path:
    """260 x 200 px in 64 px tiles, 5 columns and 4 rows; and half of that.

    OpenSlide reads the coarsest level when it opens a file, and refuses one that is damaged there.
    """
    pixels = picture(200, 260)
    return write_levels(tmp_path / "plain.tiff", [pixels, pixels[::2, ::2]])


@pytest.fixture
def other_order(monkeypatch):
    """Every grid has its tiles the other way round."""

    def reversed_grids(*arguments):
        grids = tile_grids(*arguments)
        return {
            n: replace(g, offsets=g.offsets[::-1], byte_counts=g.byte_counts[::-1])
            for n, g in grids.items()
        }

    monkeypatch.setattr("cmamil_sdk.slides.direct_reader.tile_grids", reversed_grids)


def test_pixels_that_differ_are_left_to_openslide(plain, other_order):
    """As they would be if tiles overlapped, or lay in another order."""
    falls_back(plain, "OpenSlide reads something else in level 0 at (0, 0)")


def test_glass_in_all_corners_hides_no_difference(tmp_path, monkeypatch):
    pixels = np.full((200, 260, 3), 244, np.uint8)
    pixels[:64, 192:256] = picture(64, 64)
    path = write_levels(tmp_path / "glass.tiff", [pixels])
    monkeypatch.setattr(direct_reader, "decode_tile", lambda *args: decode_tile(*args)[::-1])
    falls_back(path, "OpenSlide reads something else in level 0 at (192, 0)")


def test_a_tile_that_only_openslide_accepts_is_left_to_it(tmp_path):
    path = write_levels(tmp_path / "padded.tiff", [picture(60, 60)], change=padded)
    falls_back(path, "OpenSlide reads something else in level 0 at (0, 0)")


def padded(tile: bytes) -> bytes:
    return tile[:-2] + b"\x55" * 40 + tile[-2:]


@pytest.mark.parametrize(
    ("shape", "tags"),
    [
        ((200, 260), {"photometric": "minisblack"}),
        ((3, 200, 260), {"photometric": "rgb", "planarconfig": "separate"}),
    ],
)
def test_grey_and_planar_images_are_left_to_openslide(tmp_path, shape, tags):
    path = tmp_path / "grey.tiff"
    tifffile.imwrite(
        path, np.zeros(shape, np.uint8), tile=(64, 64), compression="jpeg", metadata=None, **tags
    )
    falls_back(path, "level 0 is no RGB or YCbCr image with 8 bits")


def test_two_images_of_one_size_are_left_to_openslide(tmp_path):
    pixels = picture(200, 260)
    path = write_levels(tmp_path / "twins.tiff", [pixels, pixels])
    with open_slide(path) as reader:
        assert "level 0 is 2 tiled images of the TIFF" in reader.facts.reader_reason


def test_large_tiles_and_systems_without_pread_are_left_to_openslide(plain, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("cmamil_sdk.slides.tiff_grids.MAX_TILE_PX", 4095)
        falls_back(plain, "level 0 has tiles of 64 x 64 pixels")
    monkeypatch.delattr(os, "pread")
    falls_back(plain, "this system has no pread")


def test_tables_that_hold_an_image_are_left_to_openslide(tmp_path):
    tile = ycbcr()(picture(64, 64))
    path = write_levels(tmp_path / "t.tiff", [picture(60, 60)], jpegtables=tile)
    with pytest.raises(SlideFormatUnsupported, match="level 0: its JPEG tables hold a segment"):
        open_slide(path, reader="direct")


def damaged(path: Path, number: int = 7) -> None:
    """Reading across the tile is the known error, again and again; the others are read."""
    x, y = number % 5 * 64, number // 5 * 64
    with open_slide(path, reader="direct") as ours:
        for _ in range(2):
            with pytest.raises(SlideCorrupt, match=rf"\({x}, {y}\), level 0, cannot be decoded"):
                ours.read_region(0, x, y, 64, 64)
        with pytest.raises(SlideCorrupt):
            ours.read_region(0, 0, 0, 260, 200)
        assert ours.read_region(0, x + 64, y, 64, 64).std() > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda tile: bytes(len(tile)),
        lambda tile: tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2),
        lambda tile: tile[:-2] + b"\0\0",
        lambda tile: b"\0\0" + tile[2:],
        lambda tile: tile[: len(tile) // 2] + b"\xff\xd9" + tile[len(tile) // 2 + 2 :],
    ],
    ids=["zeros", "half", "no end", "no start", "ended early"],
)
def test_a_damaged_tile_is_an_error_never_white_or_grey(plain, change):
    spoil_tile(plain, 7, change)
    damaged(plain)
    with open_slide(plain, reader="openslide") as theirs, pytest.raises(SlideCorrupt):
        theirs.read_region(0, 128, 64, 64, 64)


def test_a_tile_beyond_the_end_of_the_file(plain):
    for offset in (plain.stat().st_size - 10, 2**32 - 5):
        set_entry(plain, "TileOffsets", 7, offset)
        damaged(plain)


def test_a_byte_count_that_no_tile_has_is_refused_unread(plain, monkeypatch):
    set_entry(plain, "TileByteCounts", 7, 2**32 - 1)
    real, asked = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *args: asked.append(args[1]) or real(*args))
    damaged(plain)
    assert max(asked) < 2**17


def test_a_tile_of_another_size_is_refused_before_memory_is_asked_for(plain):
    def inflate(tile: bytes) -> bytes:
        frame = tile.index(b"\xff\xc0") + 5
        return tile[:frame] + b"\xff\xdc\xff\xdc" + tile[frame + 4 :]

    spoil_tile(plain, 7, inflate)
    damaged(plain)
    with open_slide(plain) as reader, pytest.raises(SlideCorrupt, match="65500 x 65500"):
        reader.read_region(0, 128, 64, 1, 1)


def test_a_damaged_sample_does_not_stop_the_reader(plain):
    spoil_tile(plain, 0, lambda tile: bytes(len(tile)))
    with open_slide(plain, reader="direct") as reader:
        assert "at 7 places" in reader.facts.reader_reason


def test_a_read_that_the_system_refuses_is_the_known_error(plain, monkeypatch):
    with open_slide(plain) as reader:

        def fail(*_arguments: int) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(SlideCorrupt, match="Input/output error"):
            reader.read_region(0, 0, 0, 8, 8)
        monkeypatch.undo()
        assert reader.read_region(0, 0, 0, 8, 8).shape == (8, 8, 3)


def test_threads_share_a_reader(noisy_slide):
    boxes = [(x, y) for x in range(0, 600, 60) for y in range(0, 400, 50)]
    with open_slide(noisy_slide, reader="direct") as reader:
        whole = reader.read_region(0, 0, 0, 700, 500)
        reader.decoded = DecodedTiles(max_bytes=150_000)  # three or so of 35 tiles
        wrong = []

        def work(turn: int) -> None:
            for x, y in boxes[turn:] + boxes[:turn]:
                if (reader.read_region(0, x, y, 90, 80) != whole[y : y + 80, x : x + 90]).any():
                    wrong.append((x, y))

        threads = [threading.Thread(target=work, args=(turn * 11,)) for turn in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_closing_releases_the_file_and_reads_no_other(noisy_slide):
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    reader = open_slide(noisy_slide, reader="direct")
    assert descriptors() > before
    assert reader.read_region(0, 0, 0, 8, 8).shape == (8, 8, 3)
    reader.close()
    assert descriptors() == before
    with pytest.raises(SlideCorrupt, match="cannot be read"):
        reader.read_region(0, 0, 0, 8, 8)


def test_a_fall_back_leaves_no_file_open(plain, other_order):
    before = len(list(Path("/proc/self/fd").iterdir()))
    open_slide(plain).close()
    with pytest.raises(SlideFormatUnsupported):
        open_slide(plain, reader="direct")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_cut_while_it_is_open(plain):
    with open_slide(plain, reader="direct") as reader:
        offset, size = tile_span(plain, 19)
        os.truncate(plain, offset + size // 2)
        with pytest.raises(SlideCorrupt, match="the file ends within a tile"):
            reader.read_region(0, 256, 192, 4, 8)
        assert reader.read_region(0, 0, 0, 64, 64).std() > 0
