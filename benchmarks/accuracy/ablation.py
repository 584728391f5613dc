"""What each part brings: rows of the other tables, each on the benchmark where the part matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .conjunction import TABLE as CONJUNCTION
from .hierarchy import TABLE as HIERARCHY
from .needle import TABLE as NEEDLE
from .table import Row, Table

_TABLES = {table.name: table for table in (CONJUNCTION, NEEDLE, HIERARCHY)}
_CHOSEN = {
    "conjunction": (
        "nested",
        "nested-bias",
        "global",
        "late fusion",
        "nested, noise .8",
        "nested, noise .8, one head",
        "nested, noise .8, loss per scale",
        "nested, noise .8, LayerNorm",
    ),
    "needle": (
        "attention, 200 tiles",
        "reference, 200 tiles",
        "attention, LayerNorm, 200 tiles",
        "reference, no LayerNorm, 200 tiles",
        "attention, self-attention, 200 tiles",
        "reference, self-attention, 200 tiles",
        "attention, 200 tiles, ce tile loss",
        "attention, 200 tiles, svm tile loss",
    ),
    "hierarchy": tuple(n for n, row in HIERARCHY.rows.items() if not row.options.get("defaults")),
}


def ablation_scores(options: Mapping[str, Any], seed: int) -> list[Mapping[str, float]]:
    """Scores of the benchmark that ``options['benchmark']`` names, for its own ``options``."""
    return list(_TABLES[options["benchmark"]].score(options["options"], seed))


def _row(benchmark: str, name: str) -> Row:
    row = _TABLES[benchmark].rows[name]
    return Row({"benchmark": benchmark, "options": row.options}, row.seeds)


TABLE = Table(
    name="ablation",
    title="What each part brings",
    score=ablation_scores,
    settings={name: table.settings for name, table in _TABLES.items()},
    rows={
        f"{benchmark}: {name}": _row(benchmark, name)
        for benchmark, names in _CHOSEN.items()
        for name in names
    },
)

__all__ = ["TABLE", "ablation_scores"]
