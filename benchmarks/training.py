"""Training speed and memory: our forms against the published models, written straight away.

A pair is one optimiser step of each on the same bag. Steps, not epochs, are timed, because an epoch
of the published model would take minutes; an epoch of 1,000 bags is 1,000 median steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import csv_text, write_atomic, write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.training.runtime import reproducible
from cmamil_sdk.wording import counted

from .environment import describe_machine, load_average
from .pairs import MIN_PAIRS, Pairs, spread, time_in_turns
from .training_memory import Who, step_memory
from .training_steps import FORMS, draw_bag, our_step, published_step

LARGE_TILES = 64_000
"""Tiles at the finest scale of the bag that must still be trained on."""

_EPOCH_BAGS = 1000
_BAGS = 4

_EPOCH_COLUMNS = (
    *("form", "threads", "pairs", "ours_s", "published_s"),
    *("ratio", "ratio_low", "ratio_high", "ours_spread", "published_spread"),
)
_MEMORY_COLUMNS = (
    *("form", "who", "finest_tiles", "feature_dim"),
    *("bag_mb", "before_mb", "peak_mb", "growth_mb"),
)

OnStep = Callable[[str, int, int], None]
"""``on_step(what, done, total)`` before each measurement."""


@dataclass(frozen=True)
class TrainingBench:
    """What is measured.

    Attributes:
        forms: of :data:`~cmamil_sdk.benchmarks.training_steps.FORMS`.
        tiles: at 5x; four times as many at 10x, sixteen times at 20x.
        feature_dim: width D of the features.
        pairs: steps of ours and of the published model in turns, per form and number of threads.
        threads: of torch, each number in turn.
        large: whether memory is also measured on a bag of :data:`LARGE_TILES`.
    """

    forms: tuple[str, ...] = FORMS
    tiles: int = 250
    feature_dim: int = 512
    pairs: int = 25
    threads: tuple[int, ...] = (1, 2)
    large: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that would measure nothing (FieldInvalid)."""
        unknown = sorted(set(self.forms) - set(FORMS))
        if unknown or not self.forms:
            raise FieldInvalid(
                f"--forms {','.join(self.forms)!r} must be some of {', '.join(FORMS)}."
            )
        if self.tiles < 1 or self.feature_dim < 1:
            raise FieldInvalid(
                f"--tiles {self.tiles} and --feature-dim {self.feature_dim} must be 1 or more."
            )
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(
                f"--pairs {self.pairs} are too few for an interval; give at least {MIN_PAIRS}."
            )
        cores = available_cores()
        if not self.threads or min(self.threads) < 1 or max(self.threads) > cores:
            raise FieldInvalid(
                f"--threads {','.join(map(str, self.threads))!r} must lie between 1 and the "
                f"{cores} cores here; more threads than cores measure nothing but waiting."
            )

    @property
    def finest_tiles(self) -> int:
        """Tiles at 20x."""
        return 16 * self.tiles

    @property
    def published(self) -> tuple[str, ...]:
        """The forms whose published models stand beside: "global" beside all of CMA-MIL."""
        beside = ["hmil" if form == "hmil" else "global" for form in self.forms]
        return tuple(dict.fromkeys(beside))


def measure_training(bench: TrainingBench, *, on_step: OnStep | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Raises:
        MemoryTooSmall: a step did not fit into memory.
    """
    report = on_step or (lambda _what, _done, _total: None)
    load_before = load_average()
    epochs = [row for threads in bench.threads for row in _epoch_rows(bench, threads, report)]
    return {
        "benchmark": "training",
        "settings": asdict(bench),
        "epochs": epochs,
        "memory": [
            *_memory_rows(bench.forms, bench.finest_tiles, bench, "ours", report),
            *_memory_rows(bench.published, bench.finest_tiles, bench, "published", report),
        ],
        "memory_large": (
            _memory_rows(bench.forms, LARGE_TILES, bench, "ours", report) if bench.large else []
        ),
        "environment": {
            **describe_machine(),
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def write_training(folder: Path, document: dict[str, Any]) -> None:
    """Write ``training.json`` (all), ``training.csv`` (times) and ``training_memory.csv``."""
    write_json(folder / "training.json", document)
    for name, columns, rows in (
        ("training.csv", _EPOCH_COLUMNS, document["epochs"]),
        (
            "training_memory.csv",
            _MEMORY_COLUMNS,
            [*document["memory"], *document["memory_large"]],
        ),
    ):
        lines = ([row[column] for column in columns] for row in rows)
        write_atomic(folder / name, csv_text(columns, lines).encode())


def _epoch_rows(bench: TrainingBench, threads: int, report: OnStep) -> list[dict[str, Any]]:
    """Pairs of all forms in turns, so that what disturbs the machine disturbs all alike."""
    with reproducible(0, threads):
        contests = [_Contest(form, bench) for form in bench.forms]
        for number in range(-1, bench.pairs):
            for contest in contests:
                report(f"{contest.form}, {counted(threads, 'thread')}", max(0, number), bench.pairs)
                contest.run(number)
    return [contest.row(threads) for contest in contests]


class _Contest:
    """A form of ours and the published model beside it, each with its own weights."""

    def __init__(self, form: str, bench: TrainingBench) -> None:
        self.form = form
        self._bags = [
            draw_bag(form, bench.finest_tiles, bench.feature_dim, seed) for seed in range(_BAGS)
        ]
        self._ours = our_step(form, bench.feature_dim)
        self._published = published_step(form, bench.feature_dim)
        self._times: list[tuple[float, float]] = []

    def run(self, number: int) -> None:
        """A pair; those of negative number warm up and are not counted."""
        bag = self._bags[number % _BAGS]
        times = time_in_turns(number, partial(self._published, bag), partial(self._ours, bag))
        if number >= 0:
            self._times.append(times)

    def row(self, threads: int) -> dict[str, Any]:
        """Seconds per 1,000 bags, the ratio with its interval, and every step's time."""
        published_s, ours_s = (tuple(column) for column in zip(*self._times, strict=True))
        ratio, low, high = Pairs(published_s, ours_s).ratio()
        return {
            "form": self.form,
            "threads": threads,
            "pairs": len(ours_s),
            "ours_s": _EPOCH_BAGS * statistics.median(ours_s),
            "published_s": _EPOCH_BAGS * statistics.median(published_s),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "ours_spread": spread(ours_s),
            "published_spread": spread(published_s),
            "ours_steps_s": list(ours_s),
            "published_steps_s": list(published_s),
        }


def _memory_rows(
    forms: Sequence[str], finest_tiles: int, bench: TrainingBench, who: Who, report: OnStep
) -> list[dict[str, Any]]:
    rows = []
    for done, form in enumerate(forms):
        report(f"memory, {who}, {form}, {finest_tiles} tiles", done, len(forms))
        rows.append(step_memory(form, finest_tiles, bench.feature_dim, who))
    return rows


__all__ = ["LARGE_TILES", "OnStep", "TrainingBench", "measure_training", "write_training"]
