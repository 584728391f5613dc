"""The direct reader against OpenSlide on one slide: the same tiles, in turns, in processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.predict import LocalPredictor
from cmamil_sdk.slides import SlideReader, open_slide
from cmamil_sdk.tiling.plan import TileBatch, TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .environment import describe_machine, load_average
from .pairs import MIN_PAIRS, Pairs, spread, time_in_turns

OnPair = Callable[[str, int], None]
_Name = Literal["direct", "openslide"]


@dataclass(frozen=True)
class ReadersBench:
    """What is measured.

    Attributes:
        slide: a slide file that can be read directly.
        bundle: a bundle's directory, to time whole predictions too; its recipe says what is read.
        mpp: microns per pixel of level 0, overriding the file.
        pairs: how often each reader does the work, at least five.
        workers: threads of a prediction; None takes one per core.
    """

    slide: Path
    bundle: Path | None = None
    mpp: float | None = None
    pairs: int = 15
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse too few pairs for an interval (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")


def measure_readers(bench: ReadersBench, *, on_pair: OnPair | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/reading.md describes.

    Args:
        bench: the settings.
        on_pair: called with what is measured and the pairs done.

    Raises:
        SlideFormatUnsupported: the slide cannot be read directly.
        CmamilError: whatever loading the bundle or reading the slide raises.
    """
    report = on_pair or (lambda _what, _done: None)
    load_before = load_average()
    bundle = None if bench.bundle is None else Bundle.load(bench.bundle)
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"))
    if bundle is not None:
        recipe = bundle.manifest.recipe
    direct = open_slide(bench.slide, mpp=bench.mpp, reader="direct")
    theirs = open_slide(bench.slide, mpp=bench.mpp, reader="openslide")
    with direct, theirs:
        plan = make_plan(direct, recipe)
        batches = plan.batches()
        equal = all(_same_pixels(direct, theirs, batch) for batch in batches)
        rows = [
            _row(
                "read",
                plan,
                partial(_read_all, theirs, batches),
                partial(_read_all, direct, batches),
                bench.pairs,
                report,
            )
        ]
    if bundle is not None:
        rows.append(_measure_predictions(bundle, bench, plan, report))
    return {
        "benchmark": "readers",
        "slide": {
            "name": bench.slide.name,
            "sha256": sha256_of_file(bench.slide),
            "tiles": plan.counts(),
            "reader_reason": plan.facts.reader_reason,
            "pixels_equal": equal,
        },
        "settings": {**asdict(bench), "slide": str(bench.slide), "bundle": _text(bench.bundle)},
        "rows": rows,
        "environment": {
            **describe_machine(),
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _same_pixels(one: SlideReader, other: SlideReader, batch: TileBatch) -> bool:
    first, second = read_tiles(one, batch), read_tiles(other, batch)
    same = np.array_equal(first.ok, second.ok)
    return same and np.array_equal(first.pixels[first.ok], second.pixels[second.ok])


def _read_all(reader: SlideReader, batches: list[TileBatch]) -> None:
    for batch in batches:
        read_tiles(reader, batch)


def _measure_predictions(
    bundle: Bundle, bench: ReadersBench, plan: TilePlan, report: OnPair
) -> dict[str, Any]:
    predictor = LocalPredictor(bundle, workers=bench.workers)

    def predict(name: _Name) -> None:
        predictor.predict(bench.slide, mpp=bench.mpp, reader=name)

    try:
        return _row(
            "predict",
            plan,
            partial(predict, "openslide"),
            partial(predict, "direct"),
            bench.pairs,
            report,
        )
    finally:
        predictor.close()


def _row(
    what: str,
    plan: TilePlan,
    openslide: Callable[[], None],
    direct: Callable[[], None],
    pairs: int,
    report: OnPair,
) -> dict[str, Any]:
    """Processor time of all threads; a first pair warms up and is not counted."""
    time_in_turns(-1, openslide, direct)
    times = []
    for number in range(pairs):
        times.append(time_in_turns(number, openslide, direct, clock=time.process_time))
        report(what, number + 1)
    measured = Pairs(*(tuple(side) for side in zip(*times, strict=True)))
    ratio, low, high = measured.ratio()
    tiles = plan.total_tiles()
    return {
        "what": what,
        "pairs": pairs,
        "openslide_cpu_ms_per_tile": 1000 * float(np.median(measured.baseline_s)) / tiles,
        "direct_cpu_ms_per_tile": 1000 * float(np.median(measured.ours_s)) / tiles,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "openslide_spread": spread(measured.baseline_s),
        "direct_spread": spread(measured.ours_s),
        "openslide_cpu_s": list(measured.baseline_s),
        "direct_cpu_s": list(measured.ours_s),
    }


__all__ = ["ReadersBench", "measure_readers"]
