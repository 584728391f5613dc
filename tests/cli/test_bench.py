"""``cmamil bench``; the measurements themselves are tested in tests/benchmarks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.benchmarks import aggregator, case_rows, contest, engine, training
from cmamil_sdk.benchmarks.accuracy import tables
from cmamil_sdk.benchmarks.accuracy.table import MeanTarget, Row, Table
from cmamil_sdk.benchmarks.cases import measure_case
from cmamil_sdk.benchmarks.training_memory import measure_step
from cmamil_sdk.engines.choose import engine_precisions

SHORT = ("--duration", "0.01", "--min-samples", "1", "--warmup", "1")


def test_json_and_files(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path, tmp_path: Path
) -> None:
    answer = cmamil(
        *("bench", "slide", "--bundle", tiny_bundle, "--slide", small_slide, *SHORT),
        *("--out", tmp_path / "new", "--workers", "1", "--json"),
    )
    assert answer.code == 0
    document = answer.document
    assert document["settings"]["workers"] == 1
    assert document["slide"]["tiles"] == {"5x": 1, "10x": 4, "20x": 16}
    assert len(document["windows"]) == 3
    assert json.loads((tmp_path / "new" / "slide.json").read_text()) == document
    with (tmp_path / "new" / "slide.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_text_says_what_cannot_be_known(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path
) -> None:
    out = cmamil("bench", "slide", "--bundle", tiny_bundle, "--slide", small_slide, *SHORT).out
    assert "page cache warm" in out
    assert "p95 unknown" in out
    assert "CPU-ms per tile" in out
    (row,) = [line for line in out.splitlines() if line.startswith("all")]
    assert row.split()[1] == "3"
    assert row.split()[-1] == "-", "no p99 from three samples"


def test_too_few_windows_and_a_bad_slide(
    cmamil: Callable[..., Any], tiny_bundle: Path, small_slide: Path, not_a_slide: Path
) -> None:
    few = cmamil("bench", "slide", "--bundle", tiny_bundle, "--slide", small_slide, "--windows", 2)
    assert few.code == 2
    assert "at least 3" in few.err
    bad = cmamil("bench", "slide", "--bundle", tiny_bundle, "--slide", not_a_slide, *SHORT)
    assert bad.code == 3
    assert "SLIDE_FORMAT_UNSUPPORTED" in bad.err


def test_training_prints_and_writes_its_tables(
    cmamil: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "step_memory", measure_step)  # spares starting Python twice
    out = tmp_path / "new"
    answer = cmamil(
        *("bench", "training", "--forms", "none", "--tiles", "4", "--feature-dim", "8"),
        *("--pairs", "5", "--threads", "1", "--out", out, "--json"),
    )
    assert answer.code == 0
    document = answer.document
    assert document["settings"]["forms"] == ["none"]
    assert json.loads((out / "training.json").read_text()) == document
    with (out / "training.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["form"], row["threads"], row["pairs"]) == ("none", "1", "5")
    assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
    with (out / "training_memory.csv").open(newline="") as file:
        memory = list(csv.DictReader(file))
    assert [(r["form"], r["who"]) for r in memory] == [("none", "ours"), ("global", "published")]
    assert document["environment"]["packages"]["torch"]


def test_training_refuses_what_is_no_number_before_it_starts(
    cmamil: Callable[..., Any], tmp_path: Path
) -> None:
    answer = cmamil("bench", "training", "--threads", "two", "--out", tmp_path / "new")
    assert answer.code == 2
    assert "whole numbers" in answer.err
    assert not (tmp_path / "new").exists()


def test_accuracy_prints_and_writes_a_table(
    cmamil: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(options: Mapping[str, Any], seed: int) -> list[dict[str, float]]:
        return [{"auc": options["auc"] + 0.1 * seed}]

    rows = {name: Row({"auc": auc}, seeds=2) for name, auc in (("a", 0.5), ("b", 0.25))}
    echo = Table("needle", "an echo", score, rows, {}, (MeanTarget("a", "auc", least=0.6),))
    monkeypatch.setattr(tables, "make_table", lambda name, data: echo)
    out = tmp_path / "new"
    answer = cmamil("bench", "accuracy", "needle", "--out", out, "--json")
    assert answer.code == 0
    assert answer.document["rows"]["b"]["mean"] == {"auc": pytest.approx(0.3)}
    assert json.loads((out / "needle.json").read_text()) == answer.document
    assert len((out / "needle.csv").read_text().splitlines()) == 5
    plain = cmamil("bench", "accuracy", "needle", "--rows", "a", "b", "--seeds", "1", "2").out
    assert "a    0.650 (0.071)" in plain
    assert "met: a: auc at least 0.6: 0.650" in plain
    assert "NOT MET" in cmamil("bench", "accuracy", "needle", "--seeds", "0").out


def test_accuracy_refuses_before_it_starts(cmamil: Callable[..., Any], tmp_path: Path) -> None:
    for arguments, message in (
        (("unheard",), "no table 'unheard'"),
        (("musk",), "--data"),
        (("needle", "--data", tmp_path), "leave out --data"),
        (("needle", "--rows", "unheard"), "no row 'unheard'"),
    ):
        answer = cmamil("bench", "accuracy", *arguments)
        assert answer.code == 2
        assert message in answer.err
    empty = cmamil("bench", "accuracy", "musk", "--data", tmp_path, "--seeds", "0")
    assert empty.code == 3
    assert "musk1.csv.gz" in empty.err


def test_pens(cmamil: Callable[..., Any], tmp_path: Path) -> None:
    rgb = np.full((100, 60, 3), 243, dtype=np.uint8)
    rgb[10:30, 10:40] = (34, 136, 118)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    line = ("bench", "pens", tmp_path, "--um-per-px", 10)
    answer = cmamil(*line, "--json")
    assert [row["found"] for row in answer.document["pens"]] == [600, 0]
    assert answer.document["pens"][0]["recall"] is None
    Image.fromarray(rgb[..., 0] < 100).save(tmp_path / "a_mask.png")
    assert "1.000" in cmamil(*line).out
    assert "1.000" not in cmamil(*line, "--pen-min-um2", 60_001).out
    (tmp_path / "empty").mkdir()
    refused = cmamil("bench", "pens", tmp_path / "empty", "--um-per-px", 10)
    assert (refused.code, "FIELD_INVALID" in refused.err) == (2, True)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares starting Python for every way to run a network."""
    for module in (engine, aggregator):
        monkeypatch.setattr(
            module, "measure_apart", lambda case, loop, _what: measure_case(case, loop)
        )
    loading = {
        "engine": "x-cpu-fp32",
        "load_s": 0.5,
        "ready_s": 0.6,
        "runs_s": [0.6],
        "spread": 1.0,
    }
    monkeypatch.setattr(engine, "measure_loading", lambda *_: loading)
    monkeypatch.setattr(case_rows, "compete_apart", contest.compete)
    monkeypatch.setattr(contest, "_TURN_S", 0.01)


CASES = ("--duration", "0.01", "--min-samples", "1", "--pairs", "5")


@pytest.mark.usefixtures("in_this_process")
def test_engine_compares_every_way_with_the_eager_model(
    cmamil: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    line = ("bench", "engine", "--bundle", tiny_bundle, "--out", tmp_path, *CASES)
    answer = cmamil(*line, "--engine", "onnxruntime,tensorrt", "--batch", "1,2", "--json")
    assert answer.code == 0, answer.err
    document = answer.document
    assert json.loads((tmp_path / "engine.json").read_text()) == document
    rows = document["rows"]
    assert {row["tiles"] for row in rows} == {1, 2}
    labels = {row["label"] for row in rows}
    assert {"torch-eager-cpu-fp32", "onnxruntime-cpu-fp32"} <= labels
    for label in labels - {"torch-eager-cpu-fp32"}:
        (best,) = [row for row in rows if row["label"] == label and "ratio" in row]
        assert best["ratio_low"] <= best["ratio"] <= best["ratio_high"]
        assert best["pairs"] == 5
    assert "tensorrt" in document["not_here"]
    assert document["targets"][-1]["verdict"] == "aim"
    with (tmp_path / "engine.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "engine.png").stat().st_size > 5000


@pytest.mark.usefixtures("in_this_process")
def test_aggregator_compares_bags_of_every_size(
    cmamil: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    line = ("bench", "aggregator", "--out", tmp_path, *CASES)
    given = ("--engine", "onnxruntime,openvino", "--tiles", "8,4000")
    answer = cmamil(*line, "--bundle", tiny_bundle, *given)
    assert answer.code == 0, answer.err
    assert "nested  onnxruntime-cpu-fp32" in answer.out
    assert "openvino runs graphs of one" in answer.out
    assert answer.out.count("nested, openvino fp32") == 1
    assert ("nested  openvino-cpu-bf16" in answer.out) == ("bf16" in engine_precisions("openvino"))
    assert "nested, 8 tiles: matrix products take" in answer.out
    assert "aggregator, 4,000 finest tiles" in answer.out
    with (tmp_path / "aggregator.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["form"] for row in rows} == {"nested"}
    assert sorted({int(row["tiles"]) for row in rows}) == [8, 4000]
    for row in rows:
        is_ours = row["label"] == "onnxruntime-cpu-fp32"
        assert bool(row["products_share"]) == bool(row["ratio_limit"]) == is_ours
        if is_ours:
            assert 0 < float(row["products_share"]) < 1
            assert float(row["ratio_limit"]) > float(row["ratio"])
    assert (tmp_path / "aggregator.png").stat().st_size > 5000
    own = ("--forms", "none", "--feature-dim", "8", "--tiles", "8", "--engine", "onnxruntime")
    document = cmamil(*line, *own, "--json").document
    assert {row["form"] for row in document["rows"]} == {"none"}
    assert (tmp_path / "aggregator-none-8.onnx").is_file()
    assert cmamil(*line, "--bundle", tiny_bundle, "--forms", "none").code == 2


def test_engine_and_aggregator_refuse_before_they_start(
    cmamil: Callable[..., Any], tmp_path: Path
) -> None:
    for arguments, message in (
        (("engine", "--batch", "0"), "--batch"),
        (("engine", "--pairs", "4"), "at least 5"),
        (("engine", "--loads", "0"), "--loads"),
        (("engine", "--weights", "x.pth"), "--weights has no effect"),
        (("engine", "--windows", "2"), "at least 3"),
        (("aggregator", "--forms", "dense"), "--forms"),
        (("aggregator", "--tiles", "0"), "--tiles"),
        (("aggregator", "--threads", "4096"), "cores"),
        (("aggregator", "--pairs", "4"), "at least 5"),
    ):
        answer = cmamil("bench", *arguments, "--out", tmp_path / "new")
        assert (answer.code, message in answer.err) == (2, True), answer.err
        assert not (tmp_path / "new").exists()
