"""The latency command's measurement, on a real bundle and a generated slide."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.benchmarks.report import CSV_COLUMNS, csv_bytes, write_report
from cmamil_sdk.benchmarks.slide import SlideBench, measure_slide
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.errors import FieldInvalid, SlideNotFound
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.predict import STAGES, LocalPredictor, Prediction, QualityReport

SAMPLES = 2


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, synthetic_slide: Path) -> tuple[dict[str, Any], int, list[str]]:
    """A short measurement, how many predictions were made, and the phases reported."""
    calls, phases = 0, []
    patch = pytest.MonkeyPatch()
    predict = LocalPredictor.predict

    def counted(self: LocalPredictor, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return predict(self, *args, **kwargs)

    patch.setattr(LocalPredictor, "predict", counted)
    try:
        document = measure_slide(
            SlideBench(
                bundle=tiny_bundle,
                slide=synthetic_slide,
                duration_s=0.01,
                min_samples=SAMPLES,
                warmup=1,
                workers=1,
            ),
            on_prediction=lambda phase, done: phases.append(f"{phase} {done}"),
        )
    finally:
        patch.undo()
    return document, calls, phases


def test_warm_up_is_made_and_not_counted(measured: tuple[dict[str, Any], int, list[str]]) -> None:
    document, calls, phases = measured
    assert calls == 1 + 3 * SAMPLES
    assert document["result"]["n"] == 3 * SAMPLES
    assert [window["n"] for window in document["windows"]] == [SAMPLES] * 3
    assert phases == ["warm-up 1", *(f"window {w} {n}" for w in (1, 2, 3) for n in (1, 2))]


def test_the_encoder_is_loaded_for_the_reader(tiny_bundle: Path, monkeypatch) -> None:
    """A GPU that decodes does so in a process of its own, as for `predict`."""
    given: dict[str, Any] = {}

    def load(_path: Path, **options: Any) -> Any:
        given.update(options)
        raise FieldInvalid("enough is known")

    monkeypatch.setattr("cmamil_sdk.benchmarks.slide.Bundle.load", load)
    with pytest.raises(FieldInvalid, match="enough"):
        measure_slide(SlideBench(bundle=tiny_bundle, slide=Path("s.svs"), reader="cucim"))
    assert given["reader"] == "cucim"


def test_figures_agree_with_each_other(measured: tuple[dict[str, Any], int, list[str]]) -> None:
    document = measured[0]
    result, windows = document["result"], document["windows"]
    assert document["slide"]["tiles"]["20x"] == 36
    tiles = sum(document["slide"]["tiles"].values())
    latencies = [value for window in windows for value in window["latencies_s"]]
    for window in windows:
        assert window["tiles"] == SAMPLES * tiles
        assert window["tiles_per_s"] == pytest.approx(window["tiles"] / window["wall_s"])
        assert window["wall_s"] >= sum(window["latencies_s"])
    assert result["latency_s"]["max"] == max(latencies)
    assert result["latency_s"]["p50"] in latencies
    assert result["latency_s"]["p95"] is None, "six samples have no p95"
    assert result["verdict"] in ("too few samples", "unstable")
    assert sum(result["stage_shares"].values()) == pytest.approx(1.0)
    assert all(
        0 <= result["stage_shares"][s] < 1 for s in ("open", "tissue", "decode", "aggregate")
    )
    # One worker: decode and encode are most of the work, and less than all of it.
    assert 0.5 < result["stage_shares"]["decode"] + result["stage_shares"]["encode"] < 1
    assert result["cpu_s_per_tile"] > 0
    assert result["peak_rss_mb"] > 50


def test_environment_names_bundle_and_slide(
    measured: tuple[dict[str, Any], int, list[str]], tiny_bundle: Path, synthetic_slide: Path
) -> None:
    document = measured[0]
    environment, slide = document["environment"], document["slide"]
    assert environment["bundle_sha256"] == read_manifest(tiny_bundle)[1]
    assert environment["engine"].endswith("-cpu-fp32") or environment["engine"].endswith(
        "-cpu-bf16"
    )
    assert environment["page_cache"] == "warm"
    assert slide["sha256"] == sha256_of_file(synthetic_slide)
    assert (slide["width"], slide["height"]) == (2000, 1500)


def test_report_files_are_complete(
    measured: tuple[dict[str, Any], int, list[str]], tmp_path: Path
) -> None:
    document = measured[0]
    json_path, csv_path = write_report(tmp_path / "new", document)
    assert json.loads(json_path.read_text()) == json.loads(json.dumps(document))
    rows = list(csv.DictReader(io.StringIO(csv_path.read_text())))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["window"] for row in rows] == ["1", "2", "3", "all"]
    assert rows[-1]["verdict"] == document["result"]["verdict"]
    assert float(rows[-1]["tiles_per_s"]) == document["result"]["tiles_per_s"]
    assert int(rows[-1]["tiles"]) == sum(int(row["tiles"]) for row in rows[:-1])
    assert rows[-1]["p95_s"] == "", "no p95 from six samples"
    assert sorted(path.name for path in json_path.parent.iterdir()) == ["slide.csv", "slide.json"]


def test_csv_shows_percentiles_that_are_known(
    measured: tuple[dict[str, Any], int, list[str]],
) -> None:
    document = json.loads(json.dumps(measured[0]))
    document["result"]["latency_s"]["p95"] = 1.25
    document["result"]["p95_spread"] = 1.07
    row = list(csv.DictReader(io.StringIO(csv_bytes(document).decode())))[-1]
    assert (row["p95_s"], row["p95_spread"]) == ("1.25", "1.07")


def burn_cpu(seconds: float) -> None:
    """Use a thread's processor for ``seconds`` of processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def burn_in_another_thread() -> None:
    thread = threading.Thread(target=burn_cpu, args=(0.05,))
    thread.start()
    thread.join()


@pytest.fixture
def measure_work(
    tiny_bundle: Path, synthetic_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Measure predictions of ten tiles that are nothing but the given work."""

    def measure(work: Callable[[], None], **settings: Any) -> dict[str, Any]:
        def predict(*_args: object, **_kwargs: object) -> Prediction:
            work()
            return Prediction(
                slide="s",
                label="a",
                probabilities={"a": 1.0},
                coarse=None,
                tiles={"5x": 2, "20x": 8},
                quality=QualityReport(10, 10, 0, 0, "image", "it is a picture"),
                mpp=0.5,
                mpp_source="metadata",
                seconds=dict.fromkeys(STAGES, 0.1) | {"total": 1.0},
                engine="",
                bundle="",
                bundle_sha256="",
                top_tiles=(),
                warnings=(),
            )

        monkeypatch.setattr(LocalPredictor, "predict", predict)
        bench = SlideBench(bundle=tiny_bundle, slide=synthetic_slide, warmup=1, **settings)
        return measure_slide(bench)

    return measure


def test_a_window_lasts_and_processor_time_is_not_wall_time(
    measure_work: Callable[..., dict[str, Any]],
) -> None:
    document = measure_work(lambda: time.sleep(0.02), duration_s=0.15, min_samples=1)
    result = document["result"]
    for window in document["windows"]:
        assert 0.15 <= window["wall_s"] < 5
        assert 2 <= window["n"] <= 8
        assert window["tiles"] == 10 * window["n"]
    assert result["latency_s"]["min"] >= 0.02
    assert result["cores_busy"] < 0.5, "sleeping is no processor time"
    assert result["stage_shares"] == pytest.approx(
        {"open": 0.1, "tissue": 0.1, "decode": 0.1, "encode": 0.1, "aggregate": 0.1, "other": 0.5}
    )


def test_processor_time_counts_other_threads_and_windows_wait_for_samples(
    measure_work: Callable[..., dict[str, Any]],
) -> None:
    document = measure_work(burn_in_another_thread, duration_s=0.001, min_samples=4)
    assert [window["n"] for window in document["windows"]] == [4, 4, 4]
    assert document["result"]["cpu_s_per_tile"] >= 0.05 / 10


def test_twenty_samples_in_each_window_make_a_p95(
    measure_work: Callable[..., dict[str, Any]],
) -> None:
    result = measure_work(lambda: time.sleep(0.002), duration_s=0.001, min_samples=20)["result"]
    assert result["n"] == 60
    assert result["latency_s"]["p95"] >= 0.002
    assert result["latency_s"]["p99"] is None
    assert result["p95_spread"] >= 1.0
    assert result["verdict"] in ("stable", "unstable")


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": 2},
        {"duration_s": 0.0},
        {"duration_s": math.nan},
        {"min_samples": 0},
        {"warmup": 0},
    ],
)
def test_settings_that_measure_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FieldInvalid):
        SlideBench(bundle=Path("b"), slide=Path("s"), **wrong)


def test_a_missing_slide_is_its_own_error(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound):
        measure_slide(SlideBench(bundle=tiny_bundle, slide=tmp_path / "none.svs"))
