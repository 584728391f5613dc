"""Coarser scales from the finest one and from stored levels: what each costs, how far they differ."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.slides import ReaderName, SlideReader, open_slide
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .environment import describe_machine, load_average
from .pairs import MIN_PAIRS, Pairs, time_in_turns

OnPair = Callable[[int], None]


@dataclass(frozen=True)
class ScaleSourceBench:
    """What is measured.

    Attributes:
        slide: the slide file.
        scales: as of ``cmamil features``.
        mpp: microns per pixel of level 0, overriding the file.
        reader: as :func:`~cmamil_sdk.slides.open_slide`.
        pairs: how often each way is taken, at least five.
    """

    slide: Path
    scales: str = "5x,10x,20x"
    mpp: float | None = None
    reader: ReaderName = "auto"
    pairs: int = 15

    def __post_init__(self) -> None:
        """Refuse too few pairs for an interval (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")


def measure_scale_sources(
    bench: ScaleSourceBench, *, on_pair: OnPair | None = None
) -> dict[str, Any]:
    """Read the same tiles from both sources; times are of the processor, in one thread.

    Args:
        bench: the settings.
        on_pair: called with the pairs done.

    Returns:
        ``scales``: per scale its tiles, the level that ``stored`` reads it from, and the mean absolute
        difference of its pixels from those of ``finest``, grey levels; ``finest_cpu_s`` and
        ``stored_cpu_s``, medians; ``ratio``: what ``stored`` costs over ``finest``, with the ends of its
        95 % interval.

    Raises:
        CmamilError: whatever opening or planning the slide raises.
    """
    report = on_pair or (lambda _done: None)
    load_before = load_average()
    with open_slide(bench.slide, mpp=bench.mpp, reader=bench.reader) as reader:
        finest, stored = (_plan(reader, bench.scales, source) for source in ("finest", "stored"))
        downsamples = [level.downsample for level in reader.facts.levels]
        scales = _differences(reader, finest, stored)
        pairs = _time(reader, finest, stored, bench.pairs, report)
    ratio, low, high = pairs.ratio()
    return {
        "benchmark": "scale-source",
        "slide": {
            "name": bench.slide.name,
            "sha256": sha256_of_file(bench.slide),
            "downsamples": downsamples,
        },
        "scales": scales,
        "pairs": bench.pairs,
        "finest_cpu_s": float(np.median(pairs.ours_s)),
        "stored_cpu_s": float(np.median(pairs.baseline_s)),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "environment": {
            **describe_machine(),
            "page_cache": "warm",
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def _plan(reader: SlideReader, scales: str, source: Literal["finest", "stored"]) -> TilePlan:
    return make_plan(reader, TilingRecipe(scales=parse_scales(scales), scale_source=source))


def _differences(reader: SlideReader, finest: TilePlan, stored: TilePlan) -> dict[str, Any]:
    """Both plans hold the same tiles in the same batches."""
    total, count = np.zeros(len(finest.scales)), np.zeros(len(finest.scales))
    for one, other in zip(finest.batches(), stored.batches(), strict=True):
        ours, theirs = read_tiles(reader, one), read_tiles(reader, other)
        both = ours.ok & theirs.ok
        each = np.abs(ours.pixels.astype(np.int16) - theirs.pixels).mean(axis=(1, 2, 3))
        np.add.at(total, one.tile_scale[both], each[both])
        np.add.at(count, one.tile_scale[both], 1)
    levels = stored.geometry.levels()
    return {
        name: {
            "tiles": tiles,
            "stored_level": levels[name],
            "mean_difference": float(total[number] / max(1.0, count[number])),
        }
        for number, (name, tiles) in enumerate(finest.counts().items())
    }


def _time(
    reader: SlideReader, finest: TilePlan, stored: TilePlan, pairs: int, report: OnPair
) -> Pairs:
    """Processor time of both, in turns, ``stored`` as the baseline; a first pair warms up."""
    ways = partial(_read_all, reader, stored), partial(_read_all, reader, finest)
    time_in_turns(-1, *ways)
    times = []
    for number in range(pairs):
        times.append(time_in_turns(number, *ways, clock=time.process_time))
        report(number + 1)
    return Pairs(*(tuple(side) for side in zip(*times, strict=True)))


def _read_all(reader: SlideReader, plan: TilePlan) -> None:
    for batch in plan.batches():
        read_tiles(reader, batch)


__all__ = ["ScaleSourceBench", "measure_scale_sources"]
