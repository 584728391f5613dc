"""Rows of a table of cases: measured alone, then against the eager model in turns; as CSV as well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmamil_sdk.files import csv_text

from .cases import EAGER, Case
from .contest import Contest, Contestant, compete_apart, ratio_row

Row = dict[str, Any]

COLUMNS = (
    *("label", "tiles", "callers", "threads", "verdict", "n"),
    *("tiles_per_s", "throughput_spread", "p95_spread", "p50_s", "p90_s", "p95_s", "p99_s"),
    *("cpu_ms_per_tile", "before_mb", "engine_mb", "peak_mb", "gate"),
    *("ratio", "ratio_low", "ratio_high"),
    *("cpu_ratio", "pairs", "version", "cpu", "cores", "time"),
)


def is_eager(row: Row) -> bool:
    """Whether a row is the model itself."""
    return str(row.get("label", "")).startswith(EAGER)


def fastest(rows: Iterable[Row]) -> Row:
    """The row of most tiles a second."""
    return max(rows, key=lambda row: float(row["tiles_per_s"]))


def add_ratios(measured: Sequence[tuple[Case, Row]], pairs: int) -> dict[str, Contest]:
    """Compare the fastest row of each label with the fastest eager one, and write that into the rows.

    Returns the times by label, pair by pair.
    """
    cases = {id(row): case for case, row in measured}
    rows = [row for _, row in measured if "label" in row]
    labels = dict.fromkeys(row["label"] for row in rows if not is_eager(row))
    best = {label: fastest(row for row in rows if row["label"] == label) for label in labels}
    eager = [row for row in rows if is_eager(row)]
    if not best or not eager:
        return {}
    found = compete_apart(
        _contestant(fastest(eager), cases),
        {label: _contestant(row, cases) for label, row in best.items()},
        pairs,
    )
    for label, row in best.items():
        row.update(ratio_row(found[label]))
    return found


def _contestant(row: Row, cases: Mapping[int, Case]) -> Contestant:
    return Contestant(cases[id(row)], float(row["tiles_per_s"]))


def case_csv(rows: Iterable[Row], environment: Mapping[str, Any], first: Sequence[str] = ()) -> str:
    """A line per row that was measured; what is not known is empty. ``first``: columns in front."""
    lines = [
        [_cell(row, name, environment) for name in (*first, *COLUMNS)]
        for row in rows
        if "label" in row
    ]
    return csv_text([*first, *COLUMNS], lines)


def _cell(row: Row, name: str, environment: Mapping[str, Any]) -> Any:
    if name == "gate":
        return "missed" if row["missed"] else "passed"
    if name == "cpu_ms_per_tile":
        return 1000 * float(row["cpu_s_per_tile"])
    percentile = name.removesuffix("_s")
    if percentile in row["latency_s"]:
        value = row["latency_s"][percentile]
    else:
        value = row.get(name, environment.get(name))
    return "" if value is None else value


__all__ = ["COLUMNS", "Row", "add_ratios", "case_csv", "fastest", "is_eager"]
