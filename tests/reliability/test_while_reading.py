"""A slide that changes while it is read: a typed error, and no features of two slides."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.cli.app import main
from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideNotFound
from cmamil_sdk.features import slide as features_slide
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.unchanged import unchanged
from cmamil_sdk.tiling import tissue

from ..slides.tiffs import spoil_tile, tile_span
from .conftest import NAMED_READERS, READERS, TRIED, extract_in_process
from .files import write_intact
from .table import Row, check_section, plain, table


def put_another_in_its_place(path: Path) -> None:
    other = write_intact(path.with_suffix(".other"))
    spoil_tile(other, 20, lambda tile: tile[:-40] + bytes(38) + tile[-2:])
    other.replace(path)


def overwrite(path: Path) -> None:
    """Other bytes in the same file, which keeps its size."""
    spoil_tile(path, 40, lambda tile: bytes(len(tile)))
    os.utime(path)  # the clock of a file may be too coarse to tell


def cut(path: Path) -> None:
    offset, _ = tile_span(path, 30)
    os.truncate(path, offset)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "removed": ("is removed", Path.unlink),
    "replaced": ("another slide of the same size takes its place", put_another_in_its_place),
    "overwritten": ("a tile is overwritten", overwrite),
    "cut": ("is cut short", cut),
    "grown": ("a byte is appended, as while it is copied", append),
}


def outcome(path: Path, folder: Path, reader: str, change: Callable[[Path], object]) -> str:
    """What is said when the change happens after the first batch, the others yet to be read."""
    with pytest.raises((SlideCorrupt, SlideNotFound)) as caught:
        extract_in_process(path, folder, reader=reader, meddle=lambda: change(path))
    assert not list(folder.glob("*.h5")), "nothing is left"
    return f"{caught.value.reason}: {caught.value}"


def test_changes_while_a_slide_is_read(tmp_path: Path) -> None:
    rows = []
    for name, (what, change) in CHANGES.items():
        outcomes = {}
        for reader in TRIED[1:]:
            slide = write_intact(tmp_path / f"{name}.svs")
            said = outcome(slide, tmp_path / f"{name}-{reader}", reader, change)
            outcomes[reader] = plain(said, [tmp_path])
        rows.append(Row(f"{name}.svs", what, outcomes))
    check_section("files that change", table("files that change", rows, READERS[1:]))


@pytest.mark.parametrize("reader", NAMED_READERS)
def test_a_slide_replaced_before_the_workers_open_it(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pixel is then of the other slide, the hash and the tissue of the first."""
    slide = write_intact(tmp_path / "slide.svs")
    real = features_slide.extract_bag

    def late(*arguments: object, **options: object) -> object:
        put_another_in_its_place(slide)
        return real(*arguments, **options)

    monkeypatch.setattr(features_slide, "extract_bag", late)
    with pytest.raises(SlideCorrupt, match="changed while it was being read"):
        extract_in_process(slide, tmp_path / "features", reader=reader)
    assert not list((tmp_path / "features").glob("*.h5"))


def test_reading_a_slide_does_not_count_as_a_change(tmp_path: Path) -> None:
    slide = write_intact(tmp_path / "slide.svs")
    bag = extract_in_process(slide, tmp_path / "features", meddle=slide.read_bytes)
    assert bag.counts() == {"10x": 16, "20x": 56}


def test_an_error_that_has_nothing_to_do_with_it_stays_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    for error in (SlideCorrupt("of its own"), PermissionError(13, "no")):
        with pytest.raises(type(error)) as caught, unchanged(path):
            raise error
        assert caught.value is error
    missing = SlideNotFound("never was there")
    with pytest.raises(CmamilError) as caught, unchanged(tmp_path / "nothing"):
        raise missing
    assert caught.value is missing


def test_an_error_that_follows_from_it_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(SlideNotFound, match="vanished") as caught, unchanged(path):
        path.unlink()
        raise FileNotFoundError(2, "gone")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("slide.mrxs", "", "slide/Data0001.dat"),
        ("slide.vms", "[Virtual Microscope Specimen]\nImageFile=pixels.jpg\nPath=\n", "pixels.jpg"),
    ],
)
def test_the_files_that_hold_the_pixels_are_watched_as_well(
    tmp_path: Path, name: str, text: str, part: str
) -> None:
    path, pixels = tmp_path / name, tmp_path / part
    path.write_text(text)
    pixels.parent.mkdir(exist_ok=True)
    pixels.write_text("x")
    (tmp_path / "other.jpg").write_text("x")
    with unchanged(path):
        (tmp_path / "other.jpg").write_text("another")
    with pytest.raises(SlideCorrupt, match=pixels.name), unchanged(path):
        pixels.write_text("other pixels")
    with pytest.raises(SlideNotFound, match=pixels.name), unchanged(path):
        pixels.unlink()


def test_links_to_nothing_beside_a_slide_are_no_part_of_it(tmp_path: Path) -> None:
    path, parts = tmp_path / "slide.mrxs", tmp_path / "slide"
    path.write_text("")
    parts.mkdir()
    (parts / "old").symlink_to("nothing")
    with unchanged(path):
        (parts / "old").unlink()
        (parts / "new").symlink_to("nothing")


def test_openslide_names_a_file_that_is_gone_when_it_has_to_open_it_again(tmp_path: Path) -> None:
    """After an error a handle of OpenSlide is useless and the file is opened anew."""
    slide = write_intact(tmp_path / "slide.svs")
    spoil_tile(slide, 11, lambda tile: bytes(len(tile)))
    with open_slide(slide, reader="openslide") as reader:
        slide.rename(tmp_path / "elsewhere.svs")
        with pytest.raises(SlideCorrupt, match="cannot be decoded"):
            reader.read_region(0, 3 * 64, 64, 64, 64)
        for _ in range(2):
            with pytest.raises(SlideNotFound, match="no longer there"):
                reader.read_region(0, 0, 0, 64, 64)
        (tmp_path / "elsewhere.svs").rename(slide)
        assert reader.read_region(0, 0, 0, 64, 64).std() > 0


@pytest.mark.parametrize("reader", NAMED_READERS)
def test_a_slide_cut_while_it_is_open_is_never_white(tmp_path: Path, reader: str) -> None:
    slide = write_intact(tmp_path / "slide.svs")
    with open_slide(slide, reader=reader) as opened:
        cut(slide)
        for column in range(4, 8):
            with pytest.raises(SlideCorrupt):
                opened.read_region(0, column * 64, 5 * 64, 64, 64)


def test_inspect_refuses_a_slide_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = write_intact(tmp_path / "slide.svs")
    real = tissue.cell_grid

    def late(*arguments: Any) -> object:
        append(slide)
        return real(*arguments)

    monkeypatch.setattr(tissue, "cell_grid", late)
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(slide)])
    assert end.value.code == 3
    assert "SLIDE_CORRUPT" in capsys.readouterr().err
