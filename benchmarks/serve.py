"""The server as its clients see it: one and many at a time, and beside the local predictor.

The server runs with its defaults in processes of its own; clients are threads of this one. Slides are
small and generated, each different. What is measured against the local predictor takes turns with it.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.client import Client
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import csv_text, write_atomic, write_json
from cmamil_sdk.predict import LocalPredictor
from cmamil_sdk.serving.own_process import running_server
from cmamil_sdk.synthetic.large_slide import LargeSlide

from .closed_loop import Loop, measure_windows
from .environment import describe_machine, load_average
from .figures import draw_serve
from .health_probe import HealthProbe
from .local_ways import per_minute_row, slide_row
from .loop_lag import LagProbe, free_port
from .open_loop import measure_arrivals
from .pairs import MIN_PAIRS
from .targets import (
    CACHED_P99_MS,
    HEALTH_P99_MS,
    LOOP_LAG_P99_MS,
    SERVED_PER_MINUTE,
    SERVED_SLIDE,
)
from .windows import Window, figures, percentiles, window_figures
from .workshop import Workshop

OnStep = Callable[[str, int, int], None]
Row = dict[str, Any]

SLIDE = LargeSlide(size_px=3840, downsamples=(1, 4))
"""About 100 tiles at 5x, 10x and 20x."""

_SCALES = "5x,10x,20x"
_CALL_TIMEOUT_S = 600.0
_FULL_LOAD = 8
COLUMNS = (
    *("load", "slides", "concurrency", "rate_per_min", "verdict", "n", "refused"),
    *("slides_per_min", "throughput_spread", "p95_spread", "p50_s", "p90_s", "p95_s", "p99_s"),
    *("health_n", "health_p50_s", "health_p99_s", "lag_n", "lag_p99_s"),
    *("engine", "workers", "cpu", "cores", "time"),
)


@dataclass(frozen=True)
class ServeBench:
    """What is measured.

    Attributes:
        folder: of generated slides, weights and bundle, and of the results.
        bundle: None takes one of the benchmarks' encoder and an untrained CMA-MIL.
        slides: how many different slides; more than are asked for at a time.
        concurrency: clients of the closed loop.
        rates: of the open loop, in percent of the most slides a minute of the closed loop.
        loop: windows and their length.
        pairs: how often the server and the local predictor take turns, at least five.
    """

    folder: Path
    bundle: Path | None = None
    slides: int = 32
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    rates: tuple[int, ...] = (50, 80, 120)
    loop: Loop = field(default_factory=lambda: Loop(duration_s=10.0, warmup=2))
    pairs: int = 15

    def __post_init__(self) -> None:
        """Refuse what cannot be measured so (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")
        if not self.concurrency or min(self.concurrency) < 1 or min(self.rates, default=1) < 1:
            raise FieldInvalid("--concurrency and --rates are whole numbers from 1; give those.")
        if self.slides < max(*self.concurrency, _FULL_LOAD):
            raise FieldInvalid(
                f"--slides {self.slides} are fewer than are asked for at a time; give at least "
                f"{max(*self.concurrency, _FULL_LOAD)}."
            )


class _Slides:
    """The slides in turn, for any number of threads."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._lock = threading.Lock()
        self._turns = itertools.cycle(paths)

    def next(self) -> Path:
        """The next slide."""
        with self._lock:
            return next(self._turns)


def measure_serve(bench: ServeBench, *, on_step: OnStep | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_step: called with what is measured, the steps done and the steps in all.

    Raises:
        ServerUnreachable: the server does not start.
        CmamilError: whatever a prediction raises.
    """
    report = on_step or (lambda _what, _done, _total: None)
    load_before = load_average()
    workshop = Workshop(bench.folder)
    bundle = bench.bundle or workshop.bundle(_SCALES)
    paths = []
    for seed in range(bench.slides):
        report("slides", seed, bench.slides)
        paths.append(workshop.generated(replace(SLIDE, seed=seed)))
    metrics_port = free_port()
    options = ("--metrics-port", str(metrics_port))
    with _server(bundle, bench.folder, options) as client:
        slides = _Slides(paths)
        tiles = statistics.mean(_tiles(client, path) for path in paths)
        info = client.server_info()
        rows = _closed_rows(bench, client, metrics_port, slides, round(tiles), report)
        rows += _open_rows(bench, client, slides, round(tiles), rows, report)
        beside = _beside_local(bench, bundle, client, slides, report)
    rows += _cached_rows(bench, bundle, paths, round(tiles), report)
    (engine, _), *_ = info.engines.values()
    return {
        "benchmark": "serve",
        "settings": asdict(bench) | {"folder": bench.folder.name, "bundle": str(bundle)},
        "tiles_per_slide": tiles,
        "rows": rows,
        "beside_local": beside,
        "environment": {
            **describe_machine(),
            "engine": engine,
            "workers": len(info.workers),
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets that this measurement speaks of."""
    beside, rows = document["beside_local"], document["rows"]
    targets = [SERVED_SLIDE.judge(beside["slide"]["ratio"])]
    targets.append(SERVED_PER_MINUTE.judge(beside["per_minute"]["ratio"]))
    cached = [row["latency_s"]["p99"] for row in rows if row["slides"] == "cached"]
    probed = [row["health_s"]["p99"] for row in rows if row["health_s"] is not None]
    lags = [row["lag_p99_s"] for row in rows]
    for target, found in (
        (CACHED_P99_MS, cached[:1]),
        (HEALTH_P99_MS, probed),
        (LOOP_LAG_P99_MS, lags),
    ):
        known = [value for value in found if value is not None]
        if known:  # a short run may have too few calls for a percentile
            targets.append(target.judge(1000 * max(known)))
    return targets


def write_serve(folder: Path, document: dict[str, Any]) -> None:
    """Write ``serve.json`` (everything), ``serve.csv`` (a line per row) and the chart ``serve.png``."""
    write_json(folder / "serve.json", {**document, "targets": judged(document)})
    lines = [
        [_cell(row, name, document["environment"]) for name in COLUMNS] for row in document["rows"]
    ]
    write_atomic(folder / "serve.csv", csv_text(COLUMNS, lines).encode())
    draw_serve(folder / "serve.csv", folder / "serve.png")


@contextmanager
def _server(bundle: Path, root: Path, options: tuple[str, ...] = ()) -> Iterator[Client]:
    with (
        running_server(bundle, [root], ("--log-level", "warning", *options)) as address,
        Client(address, timeout_s=_CALL_TIMEOUT_S) as client,
    ):
        yield client


def _tiles(client: Client, path: Path) -> int:
    """Tiles of a slide; the file is in the page cache afterwards."""
    found = client.inspect(path.name).tiles
    if found is None:
        raise FieldInvalid(f"{path} cannot be tiled by this bundle; choose another.")
    return sum(found.values())


def _closed_rows(
    bench: ServeBench,
    client: Client,
    metrics_port: int,
    slides: _Slides,
    tiles: int,
    report: OnStep,
) -> list[Row]:
    """Cold slides, by the number of clients; health is asked for meanwhile, and the loop's lag."""
    rows = []
    for number, callers in enumerate(bench.concurrency):
        report("closed loop", number, len(bench.concurrency))
        with HealthProbe(client.server) as probe, LagProbe(metrics_port) as lag:
            windows = measure_windows(
                lambda: client.predict(slides.next().name),
                callers=callers,
                tiles=tiles,
                loop=bench.loop,
            )
        row = _row("closed", "cold", windows, concurrency=callers, health=probe.latencies_s)
        rows.append({**row, "lag_n": lag.n, "lag_p99_s": lag.percentile_s(99)})
    return rows


def _open_rows(
    bench: ServeBench,
    client: Client,
    slides: _Slides,
    tiles: int,
    closed: list[Row],
    report: OnStep,
) -> list[Row]:
    """Cold slides at random moments."""
    rows = []
    most_per_min = max(row["slides_per_min"] for row in closed)
    for number, percent in enumerate(bench.rates):
        report("open loop", number, len(bench.rates))
        rate_per_min = percent / 100 * most_per_min
        found = measure_arrivals(
            lambda: client.predict(slides.next().name),
            rate_per_s=rate_per_min / 60,
            tiles=tiles,
            loop=bench.loop,
        )
        row = _row("open", "cold", list(found.windows), refused=found.refused)
        rows.append({**row, "rate_per_min": rate_per_min, "rate_percent": percent})
    return rows


def _cached_rows(
    bench: ServeBench, bundle: Path, paths: list[Path], tiles: int, report: OnStep
) -> list[Row]:
    """Slides that the server knows, and those with every other one cold."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _server(bundle, bench.folder, ("--cache", folder)) as client,
    ):
        for path in paths:
            client.predict(path.name)
        slides, turns = _Slides(paths), itertools.count()

        def mixed() -> object:
            return client.predict(slides.next().name, bypass_cache=next(turns) % 2 == 1)

        ways: dict[str, Callable[[], object]] = {
            "cached": lambda: client.predict(slides.next().name),
            "mixed": mixed,
        }
        rows = []
        for name, call in ways.items():
            for number, callers in enumerate((1, _FULL_LOAD)):
                report(name, number, 2)
                windows = measure_windows(call, callers=callers, tiles=tiles, loop=bench.loop)
                rows.append(_row("closed", name, windows, concurrency=callers))
        return rows


def _beside_local(
    bench: ServeBench, bundle: Path, client: Client, slides: _Slides, report: OnStep
) -> dict[str, Any]:
    """One slide, and many, by the server and by the local predictor in turns."""
    with _local(bundle, None) as whole, _local(bundle, 1) as first, _local(bundle, 1) as second:
        slide = slide_row(client, whole, slides.paths, bench.pairs, report)
        many = per_minute_row(
            client, whole, (first, second), slides.paths, bench.pairs, _FULL_LOAD, report
        )
    return {"slide": slide, "per_minute": many}


@contextmanager
def _local(bundle: Path, workers: int | None) -> Iterator[LocalPredictor]:
    predictor = LocalPredictor(Bundle.load(bundle, callers=workers), workers=workers)
    try:
        yield predictor
    finally:
        predictor.close()


def _row(
    load: str,
    slides: str,
    windows: list[Window],
    *,
    concurrency: int | None = None,
    refused: int = 0,
    health: list[float] | None = None,
) -> Row:
    rates = [60 * len(window.latencies_s) / window.wall_s for window in windows]
    found = figures(windows)
    for of_the_client in ("cpu_s_per_tile", "cores_busy"):
        del found[of_the_client]
    return {
        "load": load,
        "slides": slides,
        "concurrency": concurrency,
        **found,
        "slides_per_min": statistics.median(rates),
        "refused": refused,
        "health_n": None if health is None else len(health),
        "health_s": None if health is None else percentiles(health),
        "lag_n": None,
        "lag_p99_s": None,
        "windows": [window_figures(window) for window in windows],
    }


def _cell(row: Row, name: str, environment: dict[str, Any]) -> Any:
    kind, _, percentile = name.removesuffix("_s").partition("_")
    if name in ("p50_s", "p90_s", "p95_s", "p99_s"):
        value = row["latency_s"][kind]
    elif kind == "health" and percentile.startswith("p"):
        value = None if row["health_s"] is None else row["health_s"][percentile]
    else:
        value = row.get(name, environment.get(name))
    return "" if value is None else value


__all__ = ["COLUMNS", "SLIDE", "ServeBench", "judged", "measure_serve", "write_serve"]
