"""Rounds of all tools in turns, kept as they finish, and what they say.

In a round our own run stands between each two peers, so every peer is beside it: what disturbs the
machine for a minute disturbs both sides of a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import csv_text, read_csv, write_atomic

from ..pairs import Pairs, spread
from .child import Run
from .tools import Tool

CALIBRATION = 0
"""The round in which batch sizes are tried; it is in no ratio."""


@dataclass(frozen=True)
class Record:
    """One run: ``place`` is shared by the runs of a round that stand beside each other."""

    round: int
    place: int
    tool: str
    batch: int
    tiles: int
    wall_s: float
    cpu_s: float
    peak_mb: float

    @classmethod
    def of(cls, number: int, place: int, tool: Tool, batch: int, run: Run) -> Record:
        """A run and where it stood."""
        return cls(number, place, tool.name, batch, run.tiles, run.wall_s, run.cpu_s, run.peak_mb)

    @property
    def s_per_tile(self) -> float:
        """Wall time over tiles."""
        return self.wall_s / self.tiles


def order_of_round(
    number: int, ours: Sequence[Tool], peers: Sequence[Tool]
) -> list[tuple[int, Tool]]:
    """Who runs when: ``(place, tool)``; another peer is first each time, and sides change."""
    start = number % len(peers)
    turned = [*peers[start:], *peers[:start]]
    own = list(ours) if number % 2 else list(reversed(ours))
    order = []
    for place, first in enumerate(range(0, len(turned), 2)):
        beside = turned[first : first + 2]
        order += [(place, tool) for tool in (beside[0], *own, *beside[1:])]
    return order


def better_batch(records: Iterable[Record], tool: str) -> int:
    """The batch size at which ``tool`` took less time per tile while sizes were tried."""
    tried = [r for r in records if r.round == CALIBRATION and r.tool == tool]
    return min(tried, key=lambda record: record.s_per_tile).batch


def summary(records: Sequence[Record], tool: Tool) -> dict[str, Any]:
    """What the rounds say of one tool: medians, and the largest peak."""
    own = [r for r in records if r.tool == tool.name and r.round != CALIBRATION]
    per_tile = [record.s_per_tile for record in own]
    return {
        "tool": tool.name,
        "label": tool.label,
        "batch": own[0].batch,
        "runs": len(own),
        "tiles": own[0].tiles,
        "tiles_per_s": 1 / statistics.median(per_tile),
        "cpu_ms_per_tile": 1000 * statistics.median(r.cpu_s / r.tiles for r in own),
        "peak_mb": max(record.peak_mb for record in own),
        "spread": spread(per_tile),
        "own_tiles": tool.own_tiles,
    }


def paired(records: Sequence[Record], ours: str, peer: str) -> Pairs:
    """Seconds per tile of ``peer`` and of ``ours`` beside it, round by round."""
    counted = [r for r in records if r.round != CALIBRATION]
    own = {(r.round, r.place): [] for r in counted if r.tool == ours}  # type: dict[tuple[int, int], list[float]]
    for record in counted:
        if record.tool == ours:
            own[record.round, record.place].append(record.s_per_tile)
    theirs = [r for r in counted if r.tool == peer]
    return Pairs(
        tuple(r.s_per_tile for r in theirs),
        tuple(statistics.mean(own[r.round, r.place]) for r in theirs),
    )


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write all runs as CSV, atomically."""
    header = [field.name for field in fields(Record)]
    write_atomic(path, csv_text(header, [list(asdict(r).values()) for r in records]).encode())


def read_records(path: Path) -> list[Record]:
    """Runs that :func:`write_records` wrote.

    Raises:
        FieldInvalid: the file is no such table.
    """
    rows, _ = read_csv(path, error=FieldInvalid)
    kinds = {"tool": str, "wall_s": float, "cpu_s": float, "peak_mb": float}
    try:
        return [
            Record(**{f.name: kinds.get(f.name, int)(row[f.name]) for f in fields(Record)})
            for row in rows
        ]
    except (KeyError, ValueError) as problem:
        raise FieldInvalid(
            f"{path} is no table of rounds ({problem}); give another --out, or start anew there."
        ) from problem


__all__ = [
    "CALIBRATION",
    "Record",
    "better_batch",
    "order_of_round",
    "paired",
    "read_records",
    "summary",
    "write_records",
]
