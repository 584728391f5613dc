"""``cmamil features``: files, resuming, and bad slides among good ones."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.cli.summary import Summary
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.slides import open_slide
from cmamil_sdk.synthetic import write_svs

STOP_WITHIN_S = 2.0
"""On a machine with a core free for each worker; a busy one takes longer by its load."""


@pytest.fixture
def slides(tmp_path: Path, small_slide: Path) -> Path:
    """A folder with the slides a.svs, b.svs and one that is none, bad.svs."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.svs", "b.svs"):
        shutil.copyfile(small_slide, folder / name)
    (folder / "bad.svs").write_text("this is no slide\n")
    return folder


def test_a_bad_slide_fails_alone_and_a_second_run_resumes(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = cmamil("features", "--slides", slides, "--out", out, "--json")
    assert first.code == 1
    done = first.document["features"]
    assert [entry["slide"] for entry in done] == ["a", "b"]
    assert all(entry["tiles"] == {"5x": 1, "10x": 4, "20x": 16} for entry in done)
    assert not any(entry["resumed"] for entry in done)
    (failed,) = first.document["failed"]
    assert (failed["slide"], failed["reason"]) == ("bad", "SLIDE_FORMAT_UNSUPPORTED")
    assert "bad.svs: SLIDE_FORMAT_UNSUPPORTED" in first.err
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "b.h5", "summary.csv"]
    assert first.document["summary"] == str(out / "summary.csv")
    assert set(first.document["memory"]) == {"peak_mb", "before_mb", "features_mb", "worker_mb"}
    assert first.document["memory"]["peak_mb"] > first.document["memory"]["before_mb"] / 2 > 10
    assert set(done[0]["stages"]) == {"open", "tissue", "decode", "encode", "write", "total"}
    rows = Summary(out / "summary.csv").rows()
    assert {name: (row.status, row.reason) for name, row in rows.items()} == {
        "a": ("done", ""),
        "b": ("done", ""),
        "bad": ("failed", "SLIDE_FORMAT_UNSUPPORTED"),
    }
    assert rows["a"].tiles == {"5x": 1, "10x": 4, "20x": 16}
    assert rows["bad"].message == failed["message"]
    bag, provenance = read_feature_file(out / "a.h5")
    assert bag.features["20x"].shape == (16, 1280)
    assert provenance.slide_id == "a"

    kept = (out / "a.h5").stat().st_mtime_ns
    (slides / "bad.svs").unlink()
    second = cmamil("features", "--slides", slides, "--out", out, "--json")
    assert second.code == 0
    assert all(entry["resumed"] for entry in second.document["features"])
    assert (out / "a.h5").stat().st_mtime_ns == kept
    after = Summary(out / "summary.csv").rows()
    assert [row.status for row in after.values()] == ["kept", "kept", "failed"]
    assert after["a"].seconds == rows["a"].seconds, "those of the work"
    assert after["bad"] == rows["bad"], "this run has not touched it"

    (out / "b.h5").write_bytes((out / "b.h5").read_bytes()[:2000])
    third = cmamil("features", "--slides", slides / "b.svs", "--out", out, "--json")
    assert [entry["resumed"] for entry in third.document["features"]] == [False]
    read_feature_file(out / "b.h5")


def test_seed_spelling_other_scales_and_the_table(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    a, b = slides / "a.svs", slides / "b.svs"
    answer = cmamil(
        *("features", "--slides", a, b, "--out_dir", tmp_path / "o", "--num_workers", "1"),
        *("--scales", "20x"),
    )
    assert answer.code == 0
    assert "2 of 2 slides" in answer.out
    assert set(read_feature_file(tmp_path / "o" / "b.h5")[0].features) == {"20x"}


def test_the_scale_source_is_noted_and_makes_features_of_its_own(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    features = ("features", "--slides", slides / "a.svs", "--out", tmp_path / "o", "--json")
    for source, resumed in (("finest", False), ("stored", False), ("stored", True)):
        document = cmamil(*features, "--scale-source", source).document
        assert document["features"][0]["resumed"] == resumed
        _, provenance = read_feature_file(tmp_path / "o" / "a.h5")
        assert provenance.recipe.scale_source == source


def test_a_single_bad_slide_has_its_own_status(
    cmamil: Callable[..., Any], not_a_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = cmamil("features", "--slides", not_a_slide, "--out", out)
    assert answer.code == 3
    assert "Traceback" not in answer.err
    missing = cmamil("features", "--slides", tmp_path / "none.svs", "--out", out, "--json")
    assert missing.code == 3
    assert missing.document["failed"][0]["reason"] == "SLIDE_NOT_FOUND"
    assert [path.name for path in out.iterdir()] == ["summary.csv"]


def test_stop_at_the_first_bad_slide(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    answer = cmamil(
        *("features", "--slides", slides / "bad.svs", slides / "a.svs", "--out", tmp_path / "o"),
        *("--on-error", "stop", "--json"),
    )
    assert answer.code == 1
    assert answer.document["features"] == []


def test_equal_ids_are_a_usage_error(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    other = tmp_path / "a.tif"
    shutil.copyfile(slides / "a.svs", other)
    answer = cmamil("features", "--slides", slides / "a.svs", other, "--out", tmp_path / "o")
    assert answer.code == 2
    assert "SLIDE_ID_DUPLICATE" in answer.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--encoder", "nonsense"), "FIELD_INVALID"),
        (("--scales", "20x,15x"), "SCALE_MISMATCH"),
        (("--engine", "nonsense"), "FIELD_INVALID"),
        (("--device", "tpu"), "FIELD_INVALID"),
        (("--weights", "/nowhere.pth"), "FIELD_INVALID"),
        (("--tissue", "mask"), "FIELD_INVALID"),
        (("--tissue-masks", "m.png"), "FIELD_INVALID"),
        (("--edge-threshold", "10"), "FIELD_INVALID"),
        (("--edge-area", "inside"), "FIELD_INVALID"),
        (("--tissue", "edge-density", "--edge-threshold", "256"), "FIELD_INVALID"),
        (("--pen-min-um2", "10"), "FIELD_INVALID"),
        (("--fill-holes-um2", "nan"), "FIELD_INVALID"),
        (("--drop-specks-um2", "-1"), "FIELD_INVALID"),
        (("--max-tiles", "0"), "FIELD_INVALID"),
        (("--seed", "1"), "FIELD_INVALID"),
    ],
)
def test_nonsense_options(
    cmamil: Callable[..., Any],
    small_slide: Path,
    tmp_path: Path,
    option: tuple[str, str],
    reason: str,
) -> None:
    answer = cmamil("features", "--slides", small_slide, "--out", tmp_path / "o", *option)
    assert answer.code == 2
    assert f"cmamil: {reason}: " in answer.err
    assert reason != "FIELD_INVALID" or option[-2] in answer.err, "by the name that it was given"


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(
    cmamil: Callable[..., Any], small_slide: Path, not_a_slide: Path
) -> None:
    answer = cmamil("features", "--slides", small_slide, "--out", not_a_slide)
    assert answer.code == 2
    assert "OUTPUT_UNWRITABLE" in answer.err


@pytest.mark.parametrize("presses", [1, 2, 4])
def test_interrupts_end_soon_and_leave_no_half_file(
    presses: int, small_slide: Path, tmp_path: Path
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    shutil.copyfile(small_slide, slides / "1-first.svs")
    large = np.full((4096, 4096, 3), (205, 130, 175), dtype=np.uint8)
    write_svs(large, slides / "2-large.svs", mpp=0.5, objective_power=20.0)
    line = [sys.executable, "-m", "cmamil_sdk.cli", "features", "--slides", str(slides)]
    program = subprocess.Popen(
        [*line, "--out", str(out), "--tissue", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "1-first.h5").exists():
            assert program.poll() is None, program.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        assert program.poll() is None, "the large slide is being worked on"
        asked = time.monotonic()
        for _ in range(presses):
            program.send_signal(signal.SIGINT)
            time.sleep(0.05)  # while the workers end their batches
        _, err = program.communicate(timeout=30)
        seconds = time.monotonic() - asked
    finally:
        program.kill()
    assert program.returncode == 130
    assert err.endswith("cmamil: interrupted; what is complete is kept, start again to go on.\n")
    assert "Traceback" not in err
    assert "1 of 2 slides complete" in err or presses > 1
    # A lock that impatience has left means nothing.
    left = {path.name for path in out.iterdir() if not path.name.endswith(".lock")}
    assert left == {"1-first.h5", "summary.csv"}
    assert list(Summary(out / "summary.csv").rows()) == ["1-first"]
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert seconds < STOP_WITHIN_S * busy


def test_which_tiles_are_read_is_recorded(
    cmamil: Callable[..., Any], small_slide: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = ("features", "--slides", small_slide, "--out", out, "--json")
    sampled = (*line, "--max-tiles", 5, "--seed", 3, "--pens", "exclude", "--fill-holes-um2", 900)
    first = cmamil(*sampled, "--workers", 1).document["features"][0]
    assert first["tiles"] == {"5x": 1, "10x": 4, "20x": 5}
    bag, provenance = read_feature_file(Path(first["file"]))
    recipe = provenance.recipe
    assert recipe.sample is not None
    assert (recipe.sample.max_tiles, recipe.sample.seed) == (5, 3)
    assert (recipe.tissue.pens, recipe.tissue.fill_holes_um2) == ("exclude", 900.0)
    assert cmamil(*sampled).document["features"][0]["resumed"]
    again = cmamil(*sampled, "--workers", 4, "--no-resume").document["features"][0]
    np.testing.assert_array_equal(
        read_feature_file(Path(again["file"]))[0].coords["20x"], bag.coords["20x"]
    )
    assert not cmamil(*line).document["features"][0]["resumed"]


def test_a_slide_without_tissue_fails_or_gives_a_file_without_tiles(
    cmamil: Callable[..., Any], tmp_path: Path
) -> None:
    glass = tmp_path / "glass.svs"
    write_svs(np.full((600, 600, 3), 244, np.uint8), glass, mpp=0.5, objective_power=20.0)
    line = ("features", "--slides", glass, "--out", tmp_path / "out", "--json")
    refused = cmamil(*line)
    assert refused.code == 3
    assert refused.document["failed"][0]["reason"] == "NO_TISSUE"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.csv"]
    allowed = cmamil(*line, "--allow-empty")
    assert allowed.code == 0
    assert allowed.document["features"][0]["tiles"] == {"5x": 0, "10x": 0, "20x": 0}
    bag, _ = read_feature_file(tmp_path / "out" / "glass.h5")
    assert bag.is_empty
    assert bag.features["20x"].shape == (0, 1280)
    assert cmamil(*line, "--allow-empty").document["features"][0]["resumed"]
    assert cmamil(*line).code == 3, "an old empty file does not stand for tissue"


def test_one_mask_cannot_serve_two_slides(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.png").touch()
    answer = cmamil(
        *("features", "--slides", slides / "a.svs", slides / "b.svs", "--out", tmp_path / "o"),
        *("--tissue", "mask", "--tissue-masks", tmp_path / "m.png"),
    )
    assert answer.code == 2
    assert "name a folder" in answer.err


def test_a_csv_gives_mpp_and_mask_of_each_slide(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    table = slides / "list.csv"
    table.write_text("slide,mpp\na.svs,\nb.svs,0.25\n")
    line = ("features", "--slides", table, "--out", tmp_path / "o", "--scales", "20x", "--json")
    done = cmamil(*line).document["features"]
    assert [entry["tiles"] for entry in done] == [{"20x": 16}, {"20x": 4}]
    assert read_feature_file(Path(done[1]["file"]))[1].mpp_source == "override"
    recipes = [row.recipe for row in Summary(tmp_path / "o" / "summary.csv").rows().values()]
    assert recipes[1] == f"{recipes[0]} mpp=0.25"
    twice = cmamil(*line, "--mpp", "0.5")
    assert twice.code == 2 and "--mpp 0.5 is for all slides" in twice.err

    half = np.zeros((100, 100), np.uint8)
    half[:, :50] = 255
    Image.fromarray(half).save(slides / "half.png")
    table.write_text("slide,mask\na.svs,half.png\n")
    masked = cmamil(*line, "--tissue", "mask")
    assert masked.document["features"][0]["tiles"] == {"20x": 8}
    for more, said in (
        (("--tissue", "mask", "--tissue-masks", slides / "half.png"), "a mask of its own"),
        ((), "would have no effect"),
    ):
        refused = cmamil(*line, *more)
        assert refused.code == 2 and said in refused.err
    table.write_text("slide,mask\na.svs,half.png\nb.svs,\n")
    refused = cmamil(*line, "--tissue", "mask")
    assert refused.code == 2 and "b.svs has no mask in the list" in refused.err


def test_another_recipe_takes_the_place_of_old_files_and_says_so(
    cmamil: Callable[..., Any], slides: Path
) -> None:
    """The output folder may be that of the slides."""
    line = ("features", "--slides", slides / "a.svs", "--out", slides, "--scales")
    assert cmamil(*line, "20x").code == 0
    first = Summary(slides / "summary.csv").rows()["a"]
    assert (first.status, first.message) == ("done", "")
    assert cmamil(*line, "10x").code == 0
    second = Summary(slides / "summary.csv").rows()["a"]
    assert (second.status, second.message) == ("done", "in place of an older file")
    assert second.recipe != first.recipe
    again = cmamil("features", "--slides", slides, "--out", slides, "--scales", "10x", "--json")
    assert [entry["slide"] for entry in again.document["features"]] == ["a", "b"]


def test_a_summary_of_something_else_is_refused_before_the_work(
    cmamil: Callable[..., Any], small_slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "summary.csv").write_text("month,income\n")
    answer = cmamil("features", "--slides", small_slide, "--out", tmp_path)
    assert answer.code == 2
    assert "OUTPUT_EXISTS" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


def test_a_full_disk_ends_the_run_and_loses_nothing(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cmamil("features", "--slides", slides / "a.svs", "--out", out).code == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        answer = cmamil("features", "--slides", slides / "b.svs", slides / "bad.svs", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.code == 2
    assert "OUTPUT_UNWRITABLE" in answer.err and "b.h5 cannot be written" in answer.err
    assert "bad.svs" not in answer.err, "the run has ended before it"
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "summary.csv"]
    assert list(Summary(out / "summary.csv").rows()) == ["a"]


def test_names_with_commas_and_lines_and_a_slide_that_vanishes(
    cmamil: Callable[..., Any], small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a, b.svs", 'new\nline "q" 🔬.svs', "z.svs"]
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in names:
        (slides / name).symlink_to(small_slide)

    def taken(path: Path, **options: Any) -> Any:
        (slides / "z.svs").unlink(missing_ok=True)
        return open_slide(path, **options)

    monkeypatch.setattr("cmamil_sdk.features.slide.open_slide", taken)
    out = slides / "features"
    answer = cmamil("features", "--slides", slides, "--out", out, "--scales", "20x", "--json")
    assert answer.code == 1
    rows = Summary(out / "summary.csv").rows()
    assert {row.path for row in rows.values()} == {str(slides / name) for name in names}
    assert {Path(row.path).name: row.reason for row in rows.values()} == {
        names[0]: "",
        names[1]: "",
        "z.svs": "SLIDE_NOT_FOUND",
    }
    assert cmamil("features", "--slides", slides, "--out", out, "--scales", "20x").code == 0


def test_a_scale_that_contradicts_the_slide_is_told(
    cmamil: Callable[..., Any], slides: Path, tmp_path: Path
) -> None:
    told = "The slide's metadata says 0.5 µm/px; 0.25 was given and is used."
    line = (
        "features",
        "--slides",
        slides / "a.svs",
        "--out",
        tmp_path / "o",
        "--mpp",
        "0.25",
        "--json",
    )
    for resumed in (False, True):
        answer = cmamil(*line, "--scales", "20x")
        (entry,) = answer.document["features"]
        assert (entry["resumed"], entry["warnings"]) == (resumed, [told])
        assert f"a.svs: warning: {told}" in answer.err
