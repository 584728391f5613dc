"""How close a whole run comes to what decoding and inference alone must cost, and where the rest goes.

The floor is the processor time of decoding every tile plus that of inferring it, over the cores. Both are
measured with all cores busy at it, as they are in a run.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.engines import Engine
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import csv_text, write_atomic, write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.predict import STAGES, LocalPredictor, Prediction
from cmamil_sdk.slides import SlideReader, open_slide
from cmamil_sdk.tiling.plan import TileBatch, TilePlan, make_plan

from .cpu_clock import processor_time_s
from .environment import describe_machine, load_average
from .figures import draw_floor
from .pairs import MIN_PAIRS, Pairs, spread
from .targets import SHARE_OF_FLOOR
from .workshop import Workshop

OnRound = Callable[[int, int], None]
_SAMPLE_BATCHES = 12
_STAGE_NAMES = tuple(stage for stage in STAGES if stage != "total")


@dataclass(frozen=True)
class FloorBench:
    """What is measured.

    Attributes:
        folder: of the generated slide and bundle.
        slide: None takes the generated one.
        bundle: None takes one of the benchmarks' encoder at 20x.
        rounds: how often, at least five.
        engine: as :func:`~cmamil_sdk.engines.load_engine`.
    """

    folder: Path
    slide: Path | None = None
    bundle: Path | None = None
    rounds: int = 15
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Refuse too few rounds for an interval (FieldInvalid)."""
        if self.rounds < MIN_PAIRS:
            raise FieldInvalid(f"--rounds {self.rounds} is too few; give at least {MIN_PAIRS}.")


@dataclass(frozen=True)
class _Round:
    """One round: processor time per tile of decoding and of inference, and a whole run."""

    decode_cpu_s: float
    infer_cpu_s: float
    prediction: Prediction
    cpu_s: float


def measure_floor(bench: FloorBench, *, on_round: OnRound | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_round: called with the rounds done and the rounds in all.

    Raises:
        CmamilError: whatever loading the bundle or predicting the slide raises.
    """
    report = on_round or (lambda _done, _total: None)
    load_before = load_average()
    workshop, cores = Workshop(bench.folder), available_cores()
    slide = bench.slide or workshop.slide()
    bundle = Bundle.load(bench.bundle or workshop.bundle("20x"), engine=bench.engine, device="cpu")
    predictor, encoder = LocalPredictor(bundle, workers=cores), bundle.open_encoder()
    with open_slide(slide) as reader:
        plan = make_plan(reader, bundle.manifest.recipe)
    rounds: list[_Round] = []
    try:
        predictor.predict(slide)
        for number in range(bench.rounds):
            rounds.append(_measure_round(plan, encoder, predictor, cores))
            report(number + 1, bench.rounds)
    finally:
        predictor.close()
        encoder.close()
    return {
        "benchmark": "floor",
        "settings": {
            **asdict(bench),
            **{name: str(getattr(bench, name)) for name in ("folder", "bundle")},
            "slide": slide.name,
            "cores": cores,
        },
        "tiles": plan.counts(),
        "result": _result(rounds, plan.total_tiles(), cores),
        "environment": {
            **describe_machine(),
            "engine": encoder.info.label,
            "reader": plan.facts.reader,
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def _measure_round(
    plan: TilePlan, encoder: Engine, predictor: LocalPredictor, cores: int
) -> _Round:
    batches = plan.batches()
    tiles = plan.total_tiles()
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(_open(plan)) for _ in range(cores)]
        decode_s = _cpu_of_threads(
            [_decoder(reader, batches[i::cores]) for i, reader in enumerate(readers)]
        )
    sample = batches[:: max(1, len(batches) // _SAMPLE_BATCHES)]
    pixels = _pixels(plan, sample)
    infer_s = _cpu_of_threads([_inferrer(encoder, pixels) for _ in range(cores)])
    started = processor_time_s()
    prediction = predictor.predict(Path(plan.facts.path))
    return _Round(
        decode_cpu_s=decode_s / tiles,
        infer_cpu_s=infer_s / (cores * sum(len(images) for images in pixels)),
        prediction=prediction,
        cpu_s=processor_time_s() - started,
    )


def _open(plan: TilePlan) -> SlideReader:
    return open_slide(Path(plan.facts.path), reader=plan.facts.reader)


def _decoder(reader: SlideReader, batches: list[TileBatch]) -> Callable[[], None]:
    def decode() -> None:
        for batch in batches:
            read_tiles(reader, batch)

    return decode


def _inferrer(encoder: Engine, pixels: list[np.ndarray[Any, Any]]) -> Callable[[], None]:
    def infer() -> None:
        for images in pixels:
            encoder.infer({"tiles": images})

    return infer


def _pixels(plan: TilePlan, batches: list[TileBatch]) -> list[np.ndarray[Any, Any]]:
    with _open(plan) as reader:
        return [read_tiles(reader, batch).pixels for batch in batches]


def _cpu_of_threads(work: list[Callable[[], None]]) -> float:
    """Processor time of all of ``work`` at once, a thread each."""
    started = processor_time_s()
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result()
    return processor_time_s() - started


def _result(rounds: list[_Round], tiles: int, cores: int) -> dict[str, Any]:
    floors = [tiles * (r.decode_cpu_s + r.infer_cpu_s) / cores for r in rounds]
    totals = [r.prediction.seconds["total"] for r in rounds]
    share, low, high = Pairs(tuple(floors), tuple(totals)).ratio()
    stages = {
        stage: statistics.median(r.prediction.seconds[stage] for r in rounds)
        for stage in _STAGE_NAMES
    }
    total = statistics.median(totals)
    return {
        "floor_s": statistics.median(floors),
        "total_s": total,
        "total_spread": spread(totals),
        "share_of_floor": share,
        "share_low": low,
        "share_high": high,
        "decode_cpu_ms_per_tile": 1000 * statistics.median(r.decode_cpu_s for r in rounds),
        "infer_cpu_ms_per_tile": 1000 * statistics.median(r.infer_cpu_s for r in rounds),
        "run_cpu_ms_per_tile": 1000 * statistics.median(r.cpu_s for r in rounds) / tiles,
        "tiles_per_s": tiles / total,
        "stages_s": {**stages, "rest": max(0.0, total - sum(stages.values()))},
        "rounds": [{"floor_s": f, "total_s": t} for f, t in zip(floors, totals, strict=True)],
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The target this measurement speaks of."""
    return [SHARE_OF_FLOOR.judge(document["result"]["share_of_floor"])]


def write_floor(folder: Path, document: dict[str, Any]) -> None:
    """Write ``floor.json``, ``floor.csv`` (two bars) and the chart ``floor.png``."""
    write_json(folder / "floor.json", {**document, "targets": judged(document)})
    result, cores = document["result"], document["settings"]["cores"]
    stages = list(result["stages_s"])
    floor = dict.fromkeys(stages, 0.0)
    tiles = sum(document["tiles"].values())
    for stage, cpu in (("decode", "decode_cpu_ms_per_tile"), ("encode", "infer_cpu_ms_per_tile")):
        floor[stage] = tiles * result[cpu] / 1000 / cores
    engine = document["environment"]["engine"]
    header = ["what", "engine", "tiles", *(f"{stage}_s" for stage in stages)]
    rows = [
        ["the floor", engine, tiles, *floor.values()],
        ["a whole run", engine, tiles, *result["stages_s"].values()],
    ]
    write_atomic(folder / "floor.csv", csv_text(header, rows).encode())
    draw_floor(folder / "floor.csv", folder / "floor.png")


__all__ = ["FloorBench", "judged", "measure_floor", "write_floor"]
