"""A table of scores: named rows, trained for several seeds, and the targets that they must reach."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import cmamil_sdk
from cmamil_sdk.benchmarks.environment import describe_machine, load_average
from cmamil_sdk.errors import ConfigInvalid

Scores = dict[str, list[float]]
"""Per score its values, one for each seed (and fold)."""
Results = Mapping[str, Scores]
"""Per row its scores."""
Score = Callable[[Mapping[str, Any], int], Sequence[Mapping[str, float]]]
"""Trains with a row's options for one seed; returns the scores of each held-out set."""
OnRun = Callable[[int, int, str], None]
"""``on_run(done, total, row)`` before each training and after the last."""
OnRow = Callable[[dict[str, Any]], None]
"""Told of the document so far whenever a row is filled."""

ROW_PARTS = ("options", "seeds", "seconds", "scores", "mean", "std")
"""What a document says of a row."""


@dataclass(frozen=True)
class Row:
    """A configuration: what it changes in the benchmark's settings, and for how many seeds."""

    options: Mapping[str, Any]
    seeds: int = 3


@dataclass(frozen=True)
class Verdict:
    """How a target fared; ``aim_met`` is None for a target without an aim."""

    target: str
    value: float
    met: bool
    aim_met: bool | None = None


class Target(Protocol):
    """What some rows of a table must reach."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows that it needs."""

    def judge(self, results: Results) -> Verdict:
        """The verdict on these results, which hold all of :attr:`rows`."""


@dataclass(frozen=True)
class MeanTarget:
    """Bounds on a row's mean score, or on its lead over the mean score of row ``over``."""

    row: str
    score: str
    least: float | None = None
    most: float | None = None
    aim: float | None = None
    over: str | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """The row, and the one that it is measured against."""
        return (self.row,) if self.over is None else (self.row, self.over)

    def judge(self, results: Results) -> Verdict:
        """Compare the mean over seeds."""
        value = _mean(results, self.row, self.score)
        if self.over is not None:
            value -= _mean(results, self.over, self.score)
        met = (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )
        return Verdict(self._name(), value, met, None if self.aim is None else value >= self.aim)

    def _name(self) -> str:
        lead = "" if self.over is None else f" above {self.over}"
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        bounds += [f"aim {self.aim:g}"] if self.aim is not None else []
        return f"{self.row}: {self.score}{lead} {', '.join(bounds)}"


@dataclass(frozen=True)
class Table:
    """A benchmark.

    Attributes:
        name: its name on the command line.
        title: what it shows.
        score: trains and scores one row for one seed.
        rows: the configurations by name.
        settings: what all rows share, for the record.
        targets: what must hold.
    """

    name: str
    title: str
    score: Score
    rows: Mapping[str, Row]
    settings: Mapping[str, Any]
    targets: Sequence[Target] = field(default=())


def run_table(
    table: Table,
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    kept: Mapping[str, Any] | None = None,
    on_run: OnRun | None = None,
    on_row: OnRow | None = None,
) -> dict[str, Any]:
    """Fill a table; equal arguments on one machine's CPU give equal scores.

    Args:
        table: what to run.
        rows: names of some rows; None: all.
        seeds: of data, weights, order and dropout; None: each row's own number, from 0.
        kept: rows of an earlier document of this table, which stay in the new one; those that would
            be run with the same options and seeds are not run again.
        on_run: told of each training.
        on_row: told of each row, so that what is measured can be kept as it comes.

    Returns:
        A JSON-able document: settings, per row ``options, seeds, seconds, scores, mean, std``, the
        verdicts on those targets whose rows all ran, and the machine.

    Raises:
        ConfigInvalid: a row that the table does not have, one twice, or no seed.
    """
    chosen = _choose(table, rows)
    plan = {
        name: tuple(range(table.rows[name].seeds)) if seeds is None else seeds for name in chosen
    }
    if not all(plan.values()):
        raise ConfigInvalid(f"Table {table.name} needs at least one seed; name one.")
    clock = _Clock()
    filled: dict[str, Any] = dict(kept or {})
    missing = [
        name for name in chosen if not _holds(filled.get(name), table.rows[name], plan[name])
    ]
    total, done = sum(len(plan[name]) for name in missing), 0
    document = _document(table, filled, clock)
    for name in missing:
        row_started = time.perf_counter()
        found: list[Mapping[str, float]] = []
        for seed in plan[name]:
            if on_run is not None:
                on_run(done, total, name)
            found.extend(table.score(table.rows[name].options, seed))
            done += 1
        filled[name] = {
            "options": dict(table.rows[name].options),
            "seeds": list(plan[name]),
            "seconds": round(time.perf_counter() - row_started, 1),
            **_summary(found),
        }
        document = _document(table, filled, clock)
        if on_row is not None:
            on_row(document)
    if on_run is not None:
        on_run(done, total, "done")
    return document


@dataclass(frozen=True)
class _Clock:
    """When the table was begun, and how busy the machine was then."""

    started: float = field(default_factory=time.perf_counter)
    load: float | None = field(default_factory=load_average)


def _document(table: Table, filled: Mapping[str, Any], clock: _Clock) -> dict[str, Any]:
    results = {name: row["scores"] for name, row in filled.items()}
    return {
        "table": table.name,
        "title": table.title,
        "settings": dict(table.settings),
        "code_sha256": code_sha256(),
        "rows": dict(filled),
        "targets": [
            asdict(target.judge(results))
            for target in table.targets
            if set(target.rows) <= set(results)
        ],
        "seconds": round(time.perf_counter() - clock.started, 1),
        "environment": describe_machine()
        | {"load_average": {"before": clock.load, "after": load_average()}},
    }


def _holds(filled: Mapping[str, Any] | None, row: Row, seeds: Sequence[int]) -> bool:
    if filled is None:
        return False
    return bool(filled["options"] == dict(row.options) and filled["seeds"] == list(seeds))


@functools.cache
def code_sha256() -> str:
    """Of all sources of this package: defaults that no settings name are in them."""
    root = Path(cmamil_sdk.__file__).parent
    digest = hashlib.sha256()
    folders = os.walk(root, followlinks=True)  # the workshops are links in a checkout
    files = (Path(folder, name) for folder, _, names in folders for name in names)
    for path in sorted(file for file in files if file.suffix == ".py"):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _choose(table: Table, rows: Sequence[str] | None) -> list[str]:
    if rows is None:
        return list(table.rows)
    unknown = [name for name in rows if name not in table.rows]
    if unknown:
        known = "; ".join(table.rows)
        raise ConfigInvalid(f"Table {table.name} has no row {unknown[0]!r}; it has: {known}.")
    if len(set(rows)) < len(rows) or not rows:
        raise ConfigInvalid(f"Table {table.name}: name at least one row, and each once.")
    return list(rows)


def _summary(found: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    scores = {name: [float(one[name]) for one in found] for name in found[0]}
    return {
        "scores": scores,
        "mean": {name: float(np.mean(values)) for name, values in scores.items()},
        "std": {
            name: float(np.std(values, ddof=1)) if len(values) > 1 else None
            for name, values in scores.items()
        },
    }


def _mean(results: Results, row: str, score: str) -> float:
    return float(np.mean(results[row][score]))


__all__ = [
    "ROW_PARTS",
    "MeanTarget",
    "OnRow",
    "OnRun",
    "Results",
    "Row",
    "Scores",
    "Table",
    "Target",
    "Verdict",
    "code_sha256",
    "run_table",
]
