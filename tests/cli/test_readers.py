"""``--reader`` on every command that opens slides."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.features import encoder_process
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.slides.cucim_process import cucim_installed

from ..slides.tiffs import set_entry

SHORT = ("--duration", "0.01", "--min-samples", "1", "--warmup", "1")


@pytest.fixture
def sparse_slide(small_slide: Path, tmp_path: Path) -> Path:
    """A slide whose file leaves out a tile."""
    path = tmp_path / "sparse.svs"
    path.write_bytes(small_slide.read_bytes())
    set_entry(path, "TileByteCounts", 15, 0)
    return path


def test_inspect_says_what_reads_the_slide_and_why(
    cmamil: Callable[..., Any], small_slide: Path, sparse_slide: Path
) -> None:
    out = cmamil("inspect", small_slide).out
    assert "reader       direct: JPEG tiles, the same as OpenSlide's at" in out
    out = cmamil("inspect", small_slide, "--reader", "openslide").out
    assert "reader       openslide: asked for" in out
    document = cmamil("inspect", sparse_slide, "--json").document
    assert (document["reader"], document["reader_reason"]) == (
        "openslide",
        "not read directly, because level 0 leaves out 1 of 16 tiles",
    )


def test_no_command_reads_directly_when_told_not_to(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    small_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read directly")

    monkeypatch.setattr("cmamil_sdk.slides.open.DirectReader", refuse)
    told = ("--reader", "openslide")
    for command in (
        ("inspect", small_slide, "--thumbnail", tmp_path / "tiles.png"),
        ("features", "--slides", small_slide, "--out", tmp_path / "features"),
        ("predict", small_slide, "--bundle", tiny_bundle, "--out", tmp_path, "--heatmap"),
        ("bench", "slide", "--bundle", tiny_bundle, "--slide", small_slide, *SHORT),
    ):
        assert cmamil(*command, *told).code == 0, command[0]
    assert cmamil("inspect", small_slide).code == 5, "else this test shows nothing"


def test_a_slide_that_cannot_be_read_directly_is_refused_where_that_is_asked(
    cmamil: Callable[..., Any], tiny_bundle: Path, sparse_slide: Path, tmp_path: Path
) -> None:
    told = ("--reader", "direct")
    words = "cannot be read directly: level 0 leaves out 1 of 16 tiles; leave --reader out"
    for command in (
        ("inspect", sparse_slide),
        ("features", "--slides", sparse_slide, "--out", tmp_path / "features"),
        ("predict", sparse_slide, "--bundle", tiny_bundle),
        ("bench", "slide", "--bundle", tiny_bundle, "--slide", sparse_slide, *SHORT),
    ):
        answer = cmamil(*command, *told)
        assert answer.code == 3, command[0]
        assert "SLIDE_FORMAT_UNSUPPORTED" in answer.err
        assert words in answer.err
    assert cmamil("inspect", sparse_slide, "--reader", "other").code == 2


def test_a_prediction_is_the_same_through_either_reader(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path
) -> None:
    answers = []
    for name in ("direct", "openslide", *(("cucim",) if cucim_installed() else ())):
        command = ("predict", small_slide, "--bundle", tiny_bundle, "--json", "--reader", name)
        (found,) = cmamil(*command).document["predictions"]
        del found["seconds"]
        assert found["quality"].pop("reader") == name
        del found["quality"]["reader_reason"]
        answers.append(found)
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")
def test_a_crash_on_a_gpu_costs_a_retry_and_at_worst_its_slide(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    small_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On doubles of a GPU for decoder and encoder, in a process of their own."""
    monkeypatch.setenv("CMAMIL_TEST_FOLDER", str(tmp_path))
    odd = Path(__file__).parents[1] / "features" / "odd_encoder_child.py"
    monkeypatch.setattr(encoder_process, "COMMAND", (sys.executable, "-P", str(odd)))
    monkeypatch.setattr("cmamil_sdk.bundle.aggregator._device", lambda _encoder: "cpu")
    (tmp_path / "slides").mkdir()
    for name in ("a", "b"):
        (tmp_path / "slides" / f"{name}.svs").symlink_to(small_slide)
    told = ("--reader", "cucim", "--engine", "onnxruntime", "--device", "cuda:0", "--json")
    features = ("features", "--slides", tmp_path / "slides", "--out", tmp_path / "features", *told)

    (tmp_path / "dies").write_text("0 2 SIGKILL")
    answer = cmamil(*features)
    assert answer.code == 1
    (failed,) = answer.document["failed"]
    assert (failed["slide"], failed["reason"]) == ("a", "DECODER_CRASHED")
    assert "ended two processes (the first was ended by SIGKILL" in failed["message"]
    assert [(f["slide"], f["resumed"]) for f in answer.document["features"]] == [("b", False)]
    assert answer.document["engine"] == "onnxruntime-cuda-fp32"
    assert answer.document["memory"]["peak_mb"] > answer.document["memory"]["before_mb"]
    again = cmamil(*features).document
    assert [(f["slide"], f["resumed"]) for f in again["features"]] == [("a", False), ("b", True)]

    predict = ("predict", small_slide, "--bundle", tiny_bundle)
    (tmp_path / "dies").write_text("0 1 SIGSEGV")
    (found,) = cmamil(*predict, *told).document["predictions"]
    assert found["engine"] == "onnxruntime-cuda-fp32"
    on_host = ("--engine", "onnxruntime", "--device", "cpu", "--json")
    (expected,) = cmamil(*predict, *on_host).document["predictions"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
    assert len((tmp_path / "pids").read_text().split()) == 3 + 1 + 2


def test_bench_names_the_reader(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path, tmp_path: Path
) -> None:
    command = ("bench", "slide", "--bundle", tiny_bundle, "--slide", small_slide, *SHORT)
    assert "tiles; reader direct, " in cmamil(*command).out
    document = cmamil(*command, "--reader", "openslide", "--out", tmp_path, "--json").document
    assert document["settings"]["reader"] == document["slide"]["reader"] == "openslide"
    assert ",openslide," in (tmp_path / "slide.csv").read_text()


def test_bench_readers_prints_and_writes(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    small_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ("bench", "readers", "--slide", small_slide, "--pairs", "5")
    out = cmamil(*command).out
    assert "95 %" in out
    for name in ("direct", "cucim") if cucim_installed() else ("direct",):
        assert f"the pixels of all tiles are the same: {name}, openslide" in out
    monkeypatch.setattr("cmamil_sdk.benchmarks.readers._OTHERS", ("direct",))
    answer = cmamil(*command, "--bundle", tiny_bundle, "--out", tmp_path / "new", "--json")
    assert [row["what"] for row in answer.document["rows"]] == ["read", "predict"]
    assert json.loads((tmp_path / "new" / "readers.json").read_text()) == answer.document


def test_serve_hands_the_reader_on(
    cmamil: Callable[..., Any],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[ServerConfig] = []
    monkeypatch.setattr(
        "cmamil_sdk.serving.server.serve", lambda config, **_: started.append(config)
    )
    command = ("serve", "--bundles", tiny_bundle, "--slides-root", tmp_path)
    assert cmamil(*command).code == 0
    assert cmamil(*command, "--reader", "openslide").code == 0
    assert [config.reader for config in started] == ["auto", "openslide"]
