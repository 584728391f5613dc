"""The readers that take a slide against OpenSlide: the same tiles, in turns, in processor time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import DependencyMissing, FieldInvalid, SlideFormatUnsupported
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.predict import LocalPredictor
from cmamil_sdk.slides import ReaderName, SlideReader, open_slide
from cmamil_sdk.tiling.plan import TileBatch, TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .cpu_clock import processor_time_s
from .environment import describe_machine, load_average
from .pairs import MIN_PAIRS, Pairs, spread, time_in_turns

OnPair = Callable[[str, int], None]
_OTHERS: tuple[ReaderName, ...] = ("direct", "cucim")


@dataclass(frozen=True)
class ReadersBench:
    """What is measured.

    Attributes:
        slide: a slide file that another reader than OpenSlide takes.
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
        SlideFormatUnsupported: no other reader than OpenSlide takes the slide.
        CmamilError: whatever loading the bundle or reading the slide raises.
    """
    report = on_pair or (lambda _what, _done: None)
    load_before = load_average()
    bundle = None if bench.bundle is None else Bundle.load(bench.bundle)
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"))
    if bundle is not None:
        recipe = bundle.manifest.recipe
    rows = []
    with ExitStack() as stack:
        theirs = stack.enter_context(open_slide(bench.slide, mpp=bench.mpp, reader="openslide"))
        others = {name: stack.enter_context(reader) for name, reader in _open_others(bench).items()}
        plan = make_plan(theirs, recipe)
        batches = plan.batches()
        readers = {
            name: {
                "reason": reader.facts.reader_reason,
                "largest_difference": max(_difference(theirs, reader, b) for b in batches),
            }
            for name, reader in others.items()
        }
        rows = [
            _row(
                ("read", name),
                plan,
                partial(_read_all, theirs, batches),
                partial(_read_all, reader, batches),
                bench.pairs,
                report,
            )
            for name, reader in others.items()
        ]
    if bundle is not None:
        rows += _measure_predictions(bundle, bench, plan, list(others), report)
    return {
        "benchmark": "readers",
        "slide": {
            "name": bench.slide.name,
            "sha256": sha256_of_file(bench.slide),
            "tiles": plan.counts(),
        },
        "readers": readers,
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


def _open_others(bench: ReadersBench) -> dict[ReaderName, SlideReader]:
    """The other readers that take the slide, open."""
    others: dict[ReaderName, SlideReader] = {}
    refusals = []
    for name in _OTHERS:
        try:
            others[name] = open_slide(bench.slide, mpp=bench.mpp, reader=name)
        except (SlideFormatUnsupported, DependencyMissing) as problem:
            refusals.append(problem)
    if not others:
        raise refusals[0]
    return others


def _difference(theirs: SlideReader, ours: SlideReader, batch: TileBatch) -> int:
    """Largest difference of any pixel, grey levels; 255 where only one of them decodes a tile."""
    first, second = read_tiles(theirs, batch), read_tiles(ours, batch)
    if not np.array_equal(first.ok, second.ok):
        return 255
    difference = np.abs(first.pixels[first.ok].astype(np.int16) - second.pixels[second.ok])
    return int(difference.max(initial=0))


def _read_all(reader: SlideReader, batches: Sequence[TileBatch]) -> None:
    for batch in batches:
        read_tiles(reader, batch)


def _measure_predictions(
    bundle: Bundle,
    bench: ReadersBench,
    plan: TilePlan,
    others: list[ReaderName],
    report: OnPair,
) -> list[dict[str, Any]]:
    predictor = LocalPredictor(bundle, workers=bench.workers)

    def predict(name: ReaderName) -> None:
        predictor.predict(bench.slide, mpp=bench.mpp, reader=name)

    try:
        return [
            _row(
                ("predict", name),
                plan,
                partial(predict, "openslide"),
                partial(predict, name),
                bench.pairs,
                report,
            )
            for name in others
        ]
    finally:
        predictor.close()


def _row(
    what: tuple[str, ReaderName],
    plan: TilePlan,
    openslide: Callable[[], None],
    other: Callable[[], None],
    pairs: int,
    report: OnPair,
) -> dict[str, Any]:
    """Processor time of all threads and processes; a first pair warms up and is not counted."""
    work, reader = what
    time_in_turns(-1, openslide, other)
    times = []
    for number in range(pairs):
        times.append(time_in_turns(number, openslide, other, clock=processor_time_s))
        report(f"{work}, {reader}", number + 1)
    measured = Pairs(*(tuple(side) for side in zip(*times, strict=True)))
    ratio, low, high = measured.ratio()
    tiles = plan.total_tiles()
    return {
        "what": work,
        "reader": reader,
        "pairs": pairs,
        "openslide_cpu_ms_per_tile": 1000 * float(np.median(measured.baseline_s)) / tiles,
        "cpu_ms_per_tile": 1000 * float(np.median(measured.ours_s)) / tiles,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "openslide_spread": spread(measured.baseline_s),
        "spread": spread(measured.ours_s),
        "openslide_cpu_s": list(measured.baseline_s),
        "cpu_s": list(measured.ours_s),
    }


__all__ = ["ReadersBench", "measure_readers"]
