"""Ways to run a network: what is called how often, what is told, and who is compared with whom."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.benchmarks import case_rows, cases, contest
from cmamil_sdk.benchmarks.case_rows import COLUMNS, add_ratios, case_csv, fastest
from cmamil_sdk.benchmarks.cases import (
    OpenCase,
    engine_precision_pairs,
    measure_apart,
    measure_case,
)
from cmamil_sdk.benchmarks.closed_loop import Loop, call_each, measure_windows
from cmamil_sdk.benchmarks.contest import Contestant, compete, compete_apart
from cmamil_sdk.benchmarks.encoder_case import EncoderCase
from cmamil_sdk.benchmarks.loading import measure_loading
from cmamil_sdk.errors import EngineMissing, FieldInvalid

SHORT = Loop(duration_s=0.001, min_samples=2, warmup=1)


@dataclass(frozen=True)
class Sleeper:
    """A network that takes its time."""

    label: str
    seconds: float
    tiles: int = 1
    callers: int = 1

    def open(self) -> OpenCase:
        if self.label == "absent":
            raise EngineMissing("there is none.")
        missed = "misses its gate" if self.label == "rough" else ""
        return OpenCase(
            lambda: time.sleep(self.seconds), self.label, "1", missed, lambda: closed.append(self)
        )


closed: list[Sleeper] = []


def test_calls_are_shared_out_among_threads() -> None:
    made: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        for calls in (7, 2):
            call_each(pool, lambda: made.append(threading.get_ident()), callers=3, calls=calls)
    assert len(made) == 9


def test_windows_hold_what_was_called_after_the_warm_up() -> None:
    made: list[int] = []
    loop = Loop(duration_s=0.001, min_samples=5, warmup=4)
    windows = measure_windows(lambda: made.append(1), callers=2, tiles=10, loop=loop)
    counted = sum(len(window.latencies_s) for window in windows)
    assert len(windows) == 3
    assert len(made) == counted + 4 * 2
    assert all(len(window.latencies_s) >= 5 for window in windows)
    assert sum(window.tiles for window in windows) == 10 * counted


@pytest.mark.parametrize(
    "options", [{"windows": 2}, {"duration_s": 0.0}, {"min_samples": 0}, {"warmup": 0}]
)
def test_a_loop_that_measures_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(FieldInvalid):
        Loop(**options)


def test_a_case_tells_its_figures_or_why_not() -> None:
    row = measure_case(Sleeper("rough", 0.002, tiles=8, callers=2), SHORT)
    assert (row["label"], row["version"], row["missed"]) == ("rough", "1", "misses its gate")
    assert 0 < row["tiles_per_s"] <= 2 * 8 / 0.002
    assert row["latency_s"]["p50"] >= 0.002
    assert row["peak_mb"] >= row["before_mb"] > 0
    assert len(row["windows"]) == 3
    assert closed[-1].label == "rough"
    assert measure_case(Sleeper("absent", 0.0), SHORT) == {"why": "there is none."}


def test_each_takes_turns_with_the_baseline_per_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn is said to take a second."""
    monkeypatch.setattr(contest, "_TURN_S", 0.004)
    monkeypatch.setattr(
        contest, "time_in_turns", lambda _number, base, ours: (base() or 1.0, ours() or 1.0)
    )
    closed.clear()
    baseline = Contestant(Sleeper("eager", 0.0), 250.0)
    others = {
        "four at once": Contestant(Sleeper("a", 0.0, tiles=4), 1000.0),
        "two callers": Contestant(Sleeper("b", 0.0, callers=2), 500.0),
    }
    found = compete(baseline, others, 5)
    assert list(found) == list(others)
    assert [len(contest.cpu.ours_s) for contest in found.values()] == [5, 5]
    assert found["four at once"].wall.ratios == [4.0] * 5
    assert found["two callers"].wall.ratios == [2.0] * 5
    assert {case.label for case in closed} == {"eager", "a", "b"}


def test_ratios_stand_in_the_fastest_row_of_each_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_TURN_S", 0.001)
    monkeypatch.setattr(case_rows, "compete_apart", compete)
    measured = []
    for case in (Sleeper("torch-eager", 0.0), Sleeper("x", 0.0), Sleeper("x", 0.0, tiles=9999)):
        settings = {"tiles": case.tiles, "callers": case.callers, "threads": 1}
        measured.append((case, {**settings, **measure_case(case, SHORT)}))
    times = add_ratios(measured, 5)
    rows = [row for _, row in measured]
    assert list(times) == ["x"]
    assert fastest(rows) is rows[2]
    assert ["ratio" in row for row in rows] == [False, False, True]
    assert rows[2]["ratio_low"] <= rows[2]["ratio"] <= rows[2]["ratio_high"]
    lines = case_csv([*rows, {"why": "none"}], {"cpu": "a, b", "cores": 2, "time": "now"})
    header, *cells = (line.split(",") for line in lines.splitlines())
    assert tuple(header) == COLUMNS
    assert len(cells) == 3
    assert '"a, b",2,now' in lines
    assert add_ratios([(c, r) for c, r in measured if r["label"] == "x"], 5) == {}


def test_the_ways_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "onnxruntime": {"available": True, "why": ""},
        "tensorrt": {"available": False, "why": "CUDA finds no device"},
    }
    monkeypatch.setattr(cases, "available_engines", lambda: known)
    monkeypatch.setattr(cases, "engine_precisions", lambda _name: ("fp32", "int8"))
    pairs, absent = engine_precision_pairs(["onnxruntime", "tensorrt"])
    assert pairs == [("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    assert absent == {"tensorrt": "CUDA finds no device"}
    with pytest.raises(FieldInvalid, match="--engine magic"):
        engine_precision_pairs(["magic"])


def test_in_processes_of_their_own(tiny_bundle: Path) -> None:
    case = EncoderCase(str(tiny_bundle), None, "onnxruntime", "cpu", "fp32", 2, 1, 1)
    row = measure_apart(case, SHORT, "an encoder")
    assert row["label"] == "onnxruntime-cpu-fp32"
    assert row["missed"] == ""
    assert row["tiles_per_s"] > 0
    contestant = Contestant(case, row["tiles_per_s"])
    (found,) = compete_apart(contestant, {"itself": contestant}, 1).values()
    assert 0.1 < found.wall.ratios[0] < 10
    loading = measure_loading(tiny_bundle, runs=1)
    assert 0 < loading["load_s"] <= loading["ready_s"] == loading["runs_s"][0]
    broken = EncoderCase(str(tiny_bundle), None, "onnxruntime", "cpu", "fp32", 2, 0, 1)
    assert "ended with status 1" in measure_apart(broken, SHORT, "nothing")["why"]
