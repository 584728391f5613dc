"""File-to-answer latency of the local predictor: from opening the slide to the prediction.

A closed loop: the next prediction starts when the last one is done, so latency is not hidden by
overlap. The bundle is loaded and its golden test run before; the page cache is warm, because the
warm-up reads the same file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.machine import peak_rss_mb
from cmamil_sdk.predict import STAGES, LocalPredictor, Prediction
from cmamil_sdk.slides import ReaderName, open_slide

from .closed_loop import Loop
from .cpu_clock import processor_time_s
from .environment import describe_machine, load_average
from .windows import MIN_WINDOWS, SAMPLES_FOR_P95, Window, figures, window_figures

_TIMED_STAGES = tuple(stage for stage in STAGES if stage != "total")

OnPrediction = Callable[[str, int], None]


@dataclass(frozen=True)
class SlideBench:
    """What is measured, and for how long.

    Attributes:
        bundle: a bundle's directory.
        slide: the slide file.
        mpp: microns per pixel of level 0, overriding the file.
        reader: as :func:`~cmamil_sdk.slides.open_slide`.
        windows: how many, at least three.
        duration_s: shortest length of a window, seconds.
        min_samples: fewest predictions of a window; it goes on beyond ``duration_s`` until it has
            them. A p95 needs 20.
        warmup: predictions made before the first window and not counted.
        workers: threads that read and encode; None takes one per core.
        engine: as :func:`~cmamil_sdk.engines.load_engine`.
        device: likewise.
        precision: of the encoder, as :func:`~cmamil_sdk.engines.gated.open_encoder`.
    """

    bundle: Path
    slide: Path
    mpp: float | None = None
    reader: ReaderName = "auto"
    windows: int = MIN_WINDOWS
    duration_s: float = 5.0
    min_samples: int = SAMPLES_FOR_P95
    warmup: int = 2
    workers: int | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that would measure nothing (FieldInvalid)."""
        Loop(self.windows, self.duration_s, self.min_samples, self.warmup)


def measure_slide(
    bench: SlideBench, *, on_prediction: OnPrediction | None = None
) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_prediction: called between predictions with the phase and the predictions made in it.

    Raises:
        CmamilError: whatever loading the bundle or predicting the slide raises.
    """
    report = on_prediction or (lambda _phase, _done: None)
    load_before = load_average()
    started = time.perf_counter()
    bundle = Bundle.load(
        bench.bundle,
        engine=bench.engine,
        device=bench.device,
        precision=bench.precision,
        callers=bench.workers,
        reader=bench.reader,
    )
    predictor = LocalPredictor(bundle, workers=bench.workers)
    ready_s = time.perf_counter() - started
    try:
        for done in range(bench.warmup):
            answer = predictor.predict(bench.slide, mpp=bench.mpp, reader=bench.reader)
            report("warm-up", done + 1)
        windows: list[Window] = []
        stages: list[dict[str, float]] = []
        for number in range(1, bench.windows + 1):
            window, seconds = _run_window(predictor, bench, partial(report, f"window {number}"))
            windows.append(window)
            stages += seconds
        peak_mb = predictor.memory_mb(peak_rss_mb)
    finally:
        predictor.close()
    return {
        "benchmark": "slide",
        "slide": _slide_facts(bench, answer),
        "settings": _settings(bench, predictor.workers),
        "result": _result(windows, stages, peak_mb),
        "windows": [window_figures(window) for window in windows],
        "environment": {
            **describe_machine(),
            "engine": bundle.engine_label,
            "engine_reason": bundle.encoder_info.reason,
            "bundle": bundle.label,
            "bundle_sha256": bundle.sha256,
            "bundle_ready_s": ready_s,
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def _run_window(
    predictor: LocalPredictor, bench: SlideBench, report: Callable[[int], None]
) -> tuple[Window, list[dict[str, float]]]:
    """One window, and the seconds per stage of each of its predictions."""
    latencies: list[float] = []
    stages: list[dict[str, float]] = []
    tiles = 0
    cpu_started, started = processor_time_s(), time.perf_counter()
    ended = started
    while ended - started < bench.duration_s or len(latencies) < bench.min_samples:
        begun = time.perf_counter()
        answer = predictor.predict(bench.slide, mpp=bench.mpp, reader=bench.reader)
        ended = time.perf_counter()
        latencies.append(ended - begun)
        stages.append(answer.seconds)
        tiles += sum(answer.tiles.values())
        report(len(latencies))
    window = Window(
        latencies_s=tuple(latencies),
        wall_s=ended - started,
        cpu_s=processor_time_s() - cpu_started,
        tiles=tiles,
    )
    return window, stages


def _result(
    windows: list[Window], stages: list[dict[str, float]], peak_mb: float
) -> dict[str, Any]:
    found = figures(windows)
    return {
        **found,
        "slides_per_s": found["n"] / sum(window.wall_s for window in windows),
        "stage_shares": _stage_shares(stages),
        "peak_rss_mb": peak_mb,
    }


def _stage_shares(predictions: list[dict[str, float]]) -> dict[str, float]:
    """Share of the time from file to answer per stage; ``other`` is what no stage claims."""
    total = sum(seconds["total"] for seconds in predictions)
    shares = {
        stage: sum(seconds[stage] for seconds in predictions) / total for stage in _TIMED_STAGES
    }
    return {**shares, "other": 1.0 - sum(shares.values())}


def _slide_facts(bench: SlideBench, prediction: Prediction) -> dict[str, Any]:
    with open_slide(bench.slide, mpp=bench.mpp, reader=bench.reader) as reader:
        facts = reader.facts
    return {
        "name": bench.slide.name,
        "sha256": sha256_of_file(bench.slide),
        "bytes": bench.slide.stat().st_size,
        "width": facts.width,
        "height": facts.height,
        "mpp": prediction.mpp,
        "mpp_source": prediction.mpp_source,
        "compression": facts.compression,
        "reader": facts.reader,
        "tiles": prediction.tiles,
        "tiles_failed": prediction.tiles_failed,
    }


def _settings(bench: SlideBench, workers: int) -> dict[str, Any]:
    settings = asdict(bench)
    settings.update(bundle=str(bench.bundle), slide=str(bench.slide), workers=workers)
    return settings


__all__ = ["SlideBench", "measure_slide"]
