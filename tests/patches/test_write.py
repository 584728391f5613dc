"""Slides to JPEG tiles: what the published tool meant to keep, whole or absent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image, ImageFilter, ImageStat

from cmamil_sdk.errors import (
    DecoderCrashed,
    NoTissue,
    OutputExists,
    OutputUnwritable,
    SlideCorrupt,
)
from cmamil_sdk.patches import write
from cmamil_sdk.patches.grid import magnifications
from cmamil_sdk.patches.manifest import PatchRecipe, read_coordinates, read_manifest
from cmamil_sdk.patches.write import tile_slide
from cmamil_sdk.synthetic import write_svs


def recipes(*halvings: int, threshold: float = 15, overlap: int = 0) -> tuple[PatchRecipe, ...]:
    return tuple(
        PatchRecipe(scale=s, tile_px=224, overlap_px=overlap, threshold=threshold, quality=70)
        for s in magnifications(20, list(halvings or (0, 1, 2)))
    )


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,300 x 1,000 px at 20x: squares of texture on white, so that tiles differ in edge density."""
    rng = np.random.default_rng(3)
    pixels = np.full((1000, 1300, 3), 244, np.uint8)
    for _ in range(6):
        x, y = rng.integers(0, 1100), rng.integers(0, 800)
        grain = rng.integers(60, 220, (25, 25, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        pixels[y : y + 200, x : x + 200] = grain
    path = tmp_path_factory.mktemp("slides") / "case.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    return path


def published_choice(slide: Path, halvings: int) -> set[str]:
    """Names of the tiles that DeepZoom and Pillow's FIND_EDGES keep, as published."""
    with openslide.OpenSlide(slide) as opened:
        zoom = DeepZoomGenerator(opened, tile_size=224, overlap=0, limit_bounds=True)
        level = zoom.level_count - 1 - halvings
        columns, rows = zoom.level_tiles[level]
        kept = set()
        for row in range(rows):
            for column in range(columns):
                tile = zoom.get_tile(level, (column, row))
                edges = tile.filter(ImageFilter.FIND_EDGES)
                if np.mean(ImageStat.Stat(edges).sum) / 224**2 > 15:
                    kept.add(f"{column}_{row}.jpeg")
        return kept


def test_the_tiles_are_those_that_were_meant(slide: Path, tmp_path: Path) -> None:
    done = tile_slide(slide, "a", tmp_path / "patches", recipes(), workers=2)
    assert [scale.folder.relative_to(tmp_path).as_posix() for scale in done] == [
        f"patches_{scale}/a/case" for scale in ("5x", "10x", "20x")
    ]
    assert [s.manifest.columns * s.manifest.rows for s in done] == [4, 9, 30]
    finest = done[2]
    names = {path.name for path in finest.folder.glob("*.jpeg")}
    assert names == published_choice(slide, 0)
    assert 0 < len(names) < 30
    assert {path.name for path in finest.folder.iterdir()} == names | {"tiles.json", "tiles.csv"}
    for scale in done:
        coordinates = read_coordinates(scale.folder)
        assert scale.manifest.kept == len(coordinates) == len(list(scale.folder.glob("*.jpeg")))
        size = scale.manifest.size_level0
        assert coordinates == {(c, r): (c * size, r * size) for c, r in coordinates}
        assert list(coordinates) == sorted(coordinates, key=lambda place: place[::-1])


def test_tiles_at_the_border_are_filled_with_white_and_not_stretched(
    slide: Path, tmp_path: Path
) -> None:
    folder = tile_slide(slide, "a", tmp_path / "p", recipes(0, threshold=0))[0].folder
    with Image.open(folder / "5_4.jpeg") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (224, 224, 3)
    assert pixels[:, 190:].min() > 245 and pixels[110:].min() > 245


def test_what_is_there_is_kept_and_other_tiles_are_never_mixed(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    first = tile_slide(slide, "a", out, recipes(1, 2))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpeg")}
    again = tile_slide(slide, "a", out, recipes(0, 1, 2))
    assert [scale.resumed for scale in again] == [True, True, False]
    assert again[0].manifest == first[0].manifest
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(OutputExists, match=r"p_5x/a/case holds other tiles.*--out-dir"):
        tile_slide(slide, "a", out, recipes(2, threshold=20))
    (tmp_path / "p_2.5x" / "a" / "case").mkdir(parents=True)
    with pytest.raises(OutputExists):
        tile_slide(slide, "a", out, recipes(3))


def test_a_slide_without_tissue_leaves_nothing(tmp_path: Path) -> None:
    write_svs(
        np.full((300, 300, 3), 240, np.uint8), tmp_path / "w.svs", mpp=0.5, objective_power=20
    )
    with pytest.raises(NoTissue, match=r"none of 4 tiles at 20x .*--threshold"):
        tile_slide(tmp_path / "w.svs", "a", tmp_path / "p", recipes(0))
    assert list((tmp_path / "p_20x" / "a").iterdir()) == []


def test_progress_reaches_its_end(slide: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tile_slide(slide, "a", tmp_path / "p", recipes(), on_progress=lambda *a: seen.append(a))
    assert seen == sorted(seen) and seen[-1] == (43, 43)


@pytest.mark.realdata
def test_a_slide_whose_pixels_fail_is_refused(real_data: Path, tmp_path: Path) -> None:
    slide = real_data / "slides" / "unreadable.svs"
    with pytest.raises(SlideCorrupt, match="cannot be decoded"):
        tile_slide(slide, "a", tmp_path / "p", recipes(4), mpp=0.5)
    assert list((tmp_path / "p_1.25x" / "a").iterdir()) == []


def test_a_process_that_dies_fails_the_slide(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_write_chunk", die)
    with pytest.raises(DecoderCrashed, match=r"case\.svs: a process died"):
        tile_slide(slide, "a", tmp_path / "p", recipes(0))
    assert list((tmp_path / "p_20x" / "a").iterdir()) == []


def die(_: object) -> None:
    os._exit(1)


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_process_and_its_folder_goes_with_the_next(
    slide: Path, tmp_path: Path, killed_by: signal.Signals
) -> None:
    """The child says who its processes are, and waits to be killed once tiles are written."""
    program = (
        "import multiprocessing, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.patches.test_write import recipes\n"
        "from cmamil_sdk.patches.write import tile_slide\n"
        "def seen(*_):\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    signal.pause()\n"
        "if __name__ == '__main__':\n"
        "    slide, out = map(Path, sys.argv[1:])\n"
        "    tile_slide(slide, 'a', out, recipes(0), workers=2, on_progress=seen)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    run = subprocess.Popen(
        [sys.executable, script, slide, tmp_path / "p"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert run.stdout is not None
    children = [int(pid) for pid in run.stdout.readline().split()]
    assert children
    (left,) = (tmp_path / "p_20x" / "a").iterdir()
    assert left.name == f".case.{run.pid}.tmp"
    with suppress(Interrupted), write._whole_folder(tmp_path / "p_20x" / "a" / "case"):
        assert left.is_dir(), "a folder that is being written is left alone"
        raise Interrupted
    run.send_signal(killed_by)
    run.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "the processes outlive the one that started them"
        time.sleep(0.05)
    assert left.is_dir()
    tile_slide(slide, "a", tmp_path / "p", recipes(0))
    assert [path.name for path in (tmp_path / "p_20x" / "a").iterdir()] == ["case"]


def test_two_runs_at_once_leave_one_folder(slide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p_20x" / "a" / "case"
    with pytest.raises(OutputExists, match="by another process meanwhile"):  # noqa: SIM117
        with write._whole_folder(folder) as slower:
            (slower / "0_0.jpeg").touch()
            folder.mkdir()
            (folder / "tiles.json").touch()
    assert [path.name for path in folder.parent.iterdir()] == ["case"]
    assert [path.name for path in folder.iterdir()] == ["tiles.json"]


class Interrupted(Exception):
    """Raised by a test in the middle of a slide."""


def full(_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_not_the_slides_fault(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_write_chunk", full)
    with pytest.raises(OutputUnwritable, match=r"a/case cannot be written \(No space left"):
        tile_slide(slide, "a", tmp_path / "p", recipes(0), workers=1)
    assert list((tmp_path / "p_20x" / "a").iterdir()) == []


def test_an_interrupted_slide_leaves_nothing(slide: Path, tmp_path: Path) -> None:
    def interrupt(_seen: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tile_slide(slide, "a", tmp_path / "p", recipes(0), on_progress=interrupt)
    assert list((tmp_path / "p_20x" / "a").iterdir()) == []
    manifest = tile_slide(slide, "a", tmp_path / "p", recipes(0))[0].manifest
    assert read_manifest(tmp_path / "p_20x" / "a" / "case") == manifest


def test_a_slide_that_changes_while_it_is_read_leaves_nothing(slide: Path, tmp_path: Path) -> None:
    copy = tmp_path / "growing.svs"
    copy.write_bytes(slide.read_bytes())

    def append(_done: int, _total: int) -> None:
        with copy.open("ab") as file:
            file.write(b"\0")

    with pytest.raises(SlideCorrupt, match="changed while it was being read"):
        tile_slide(copy, "a", tmp_path / "patches", recipes(), workers=1, on_progress=append)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".jpeg"]
