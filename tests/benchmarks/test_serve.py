"""``cmamil bench serve``: load, comparison and documents with a stand-in; once, really (long)."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cmamil_sdk.benchmarks import serve
from cmamil_sdk.benchmarks.closed_loop import Loop
from cmamil_sdk.benchmarks.figures import redraw
from cmamil_sdk.benchmarks.health_probe import HealthProbe
from cmamil_sdk.benchmarks.open_loop import measure_arrivals
from cmamil_sdk.benchmarks.serve import COLUMNS, ServeBench, judged, measure_serve, write_serve
from cmamil_sdk.benchmarks.workshop import Workshop
from cmamil_sdk.errors import FieldInvalid, QueueFull, ServerUnreachable

SHORT = Loop(duration_s=0.05, min_samples=20, warmup=1)


def test_calls_of_an_open_loop_come_when_they_are_due() -> None:
    """Slow answers do not delay the calls after them."""
    started: list[float] = []

    def call() -> None:
        started.append(time.perf_counter())
        time.sleep(0.2)

    found = measure_arrivals(call, rate_per_s=200, tiles=3, loop=SHORT)
    assert found.refused == 0
    for number, window in enumerate(found.windows):
        assert len(window.latencies_s) == 20 and window.tiles == 60
        assert min(window.latencies_s) >= 0.2
        calls = started[20 * number : 20 * (number + 1)]
        assert calls[-1] - calls[0] < 1.0  # one after another they would take 4 s


def test_refused_calls_are_counted_and_have_no_latency() -> None:
    calls = iter(range(1000))

    def call() -> None:
        if next(calls) % 2:
            raise QueueFull("enough")

    found = measure_arrivals(call, rate_per_s=2000, tiles=1, loop=SHORT)
    answered = sum(len(window.latencies_s) for window in found.windows)
    assert (answered, found.refused) == (150, 150)


def test_a_health_check_that_fails_is_not_passed_over() -> None:
    with pytest.raises(ServerUnreachable), HealthProbe("127.0.0.1:1"):
        pass


class StandIn:
    """A client and a local predictor: answers in a millisecond."""

    server = "127.0.0.1:1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def predict(self, slide: str | Path, **options: Any) -> Any:
        self.asked.append((str(slide), options))
        time.sleep(0.001)
        return SimpleNamespace(seconds={"total": 0.001})

    def inspect(self, _uri: str) -> Any:
        return SimpleNamespace(tiles={"20x": 90, "5x": 10})

    def server_info(self) -> Any:
        return SimpleNamespace(
            engines={"models/a/versions/1": ("fast-cpu-fp32", "")}, workers=[1, 2]
        )


class Probe:
    """Health without a server."""

    latencies_s = [0.002] * 150

    def __init__(self, _address: str) -> None: ...

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None: ...


class Lag(Probe):
    """Lags without a server."""

    n = 150

    def __init__(self, _port: int) -> None: ...

    def percentile_s(self, _percent: float) -> float:
        return 0.003


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()

    @contextmanager
    def give(*_: Any) -> Iterator[StandIn]:
        yield made

    monkeypatch.setattr(serve, "_server", give)
    monkeypatch.setattr(serve, "_local", give)
    monkeypatch.setattr(serve, "HealthProbe", Probe)
    monkeypatch.setattr(serve, "LagProbe", Lag)
    monkeypatch.setattr(
        Workshop, "generated", lambda self, slide: self.folder / f"{slide.seed}.svs"
    )
    return made


def bench(folder: Path) -> ServeBench:
    return ServeBench(
        folder=folder,
        bundle=folder / "bundle",
        slides=8,
        concurrency=(1, 4),
        rates=(50,),
        loop=Loop(duration_s=0.05, min_samples=40, warmup=1),
        pairs=5,
    )


def test_the_document_the_table_and_the_chart(stand_in: StandIn, tmp_path: Path) -> None:
    document = measure_serve(bench(tmp_path))
    kinds = [(row["load"], row["slides"], row["concurrency"]) for row in document["rows"]]
    assert kinds == [
        *(("closed", "cold", 1), ("closed", "cold", 4), ("open", "cold", None)),
        *(("closed", "cached", 1), ("closed", "cached", 8)),
        *(("closed", "mixed", 1), ("closed", "mixed", 8)),
    ]
    assert document["tiles_per_slide"] == 100
    assert {Path(slide).name for slide, _ in stand_in.asked} == {f"{n}.svs" for n in range(8)}
    assert any(options == {"bypass_cache": True} for _, options in stand_in.asked)
    assert document["beside_local"]["slide"]["pairs"] == 5
    assert document["beside_local"]["per_minute"]["slides"] == 8
    assert [target["what"].split(",")[0] for target in judged(document)] == [
        *("one cold slide through the server", "slides a minute at concurrency 8"),
        *("cached prediction", "health check under full load"),
        "event loop's lag under full load",
    ]
    write_serve(tmp_path, document)
    targets = json.loads((tmp_path / "serve.json").read_text())["targets"]
    assert [target["value"] for target in targets[3:]] == [2.0, 3.0]
    with (tmp_path / "serve.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 7
    assert float(lines[2]["rate_per_min"]) == document["rows"][2]["rate_per_min"]
    assert (lines[0]["health_p99_s"], lines[0]["lag_p99_s"]) == ("0.002", "0.003")
    assert lines[0]["workers"] == "2" and lines[-1]["lag_p99_s"] == ""
    assert redraw(tmp_path) == [tmp_path / "serve.png"]


def test_settings_that_measure_nothing_are_refused(tmp_path: Path) -> None:
    for wrong in ({"pairs": 4}, {"slides": 15}, {"concurrency": ()}, {"rates": (0,)}):
        with pytest.raises(FieldInvalid):
            ServeBench(folder=tmp_path, **wrong)
