"""What the tests of a server under load found, as a table of docs/reliability.md.

The figures differ from run to run, so the page is written (``make soak``) and never compared.
"""

from __future__ import annotations

from ..reliability.table import REWRITE, check_section, stated_lines

SECTION = "under load"
_HEAD = ["| what | found | limit |", "|---|---|---|"]


def record(what: str, found: str, limit: str) -> None:
    """Print a result, and write its row if that was asked for."""
    print(f"{what}: {found} ({limit})")  # noqa: T201
    if REWRITE:
        row = f"| {what} | {found} | {limit} |"
        rows = [line for line in stated_lines(SECTION) if line.startswith("|")][len(_HEAD) :]
        known = [line.split(" | ")[0] for line in rows]
        if f"| {what}" in known:
            rows[known.index(f"| {what}")] = row
        else:
            rows.append(row)
        check_section(SECTION, [*_HEAD, *rows])


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent of ``values`` do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]
