"""What was tried and what came out, as the tables of docs/reliability.md."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
REWRITE = bool(os.environ.get("CMAMIL_REWRITE_TABLES"))


@dataclass(frozen=True)
class Row:
    """One file: its name and what it is, and what was said of it.

    Attributes:
        name, what: of the file.
        outcomes: what ``features`` said, by reader.
        inspected: what ``inspect`` said; None where it was not tried.
    """

    name: str
    what: str
    outcomes: Mapping[str, str]
    inspected: str | None = None


def table(section: str, rows: Iterable[Row], readers: Sequence[str]) -> list[str]:
    """Markdown lines; readers that came to the same share a line.

    Of ``readers`` that were not tried, what the page says in ``section`` is repeated.
    """
    rows = list(rows)
    inspecting = any(row.inspected is not None for row in rows)
    heads = ("file", *(("`inspect`",) if inspecting else ()), "reader", "`features`")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        start = [f"`{row.name}`: {row.what}" if row.what else f"`{row.name}`"]
        start += [_cell(row.inspected or "")] if inspecting else []
        same: dict[str, list[str]] = {}
        for reader in readers:
            if reader in row.outcomes:
                said = _cell(_shortened(row.outcomes[reader], row.inspected))
            else:
                said = _stated(section, row.name, reader)
            same.setdefault(said, []).append(reader)
        for said, group in same.items():
            shown = "each" if len(group) == len(readers) else ", ".join(group)
            lines.append(f"| {' | '.join([*start, shown, said])} |")
            start = [""] * len(start)
    return lines


def _stated(section: str, name: str, reader: str) -> str:
    """What the page says of a file through a reader."""
    file = ""
    for line in stated_lines(section):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) < 3:
            continue
        file = cells[0] or file
        if file.startswith(f"`{name}`") and {"each", reader} & set(cells[-2].split(", ")):
            return cells[-1]
    raise AssertionError(f"docs/reliability.md says nothing of {name} through {reader}")


def plain(message: str, folders: Sequence[Path]) -> str:
    """A message without what differs between machines: folders and user."""
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    return re.sub(r"by user \d+", "by user N", message)


def check_section(name: str, lines: Sequence[str]) -> None:
    """Compare a section of the page with ``lines``, or write them there if that was asked for."""
    if REWRITE:
        before, _, after = _parts(name)
        PAGE.write_text(before + "\n".join(["", "", *lines, "", ""]) + after, "utf-8")
        return
    assert stated_lines(name) == list(lines), (
        "run `make reliability-tables` and look at what changed"
    )


def stated_lines(name: str) -> list[str]:
    """The lines of a section as the page has them."""
    return _parts(name)[1].strip("\n").split("\n")


def _parts(name: str) -> tuple[str, str, str]:
    """The page up to the section's mark, the section, and the page from its end mark on."""
    start, end = f"<!-- {name}: written by tests/reliability -->", f"<!-- {name}: end -->"
    before, _, rest = PAGE.read_text("utf-8").partition(start)
    stands, _, after = rest.partition(end)
    assert after, f"docs/reliability.md has no section {name}"
    return before + start, stands, end + after


def _shortened(text: str, first: str | None) -> str:
    """What a command said, without repeating what the first one did."""
    if text == first:
        return "the same"
    reason, _, message = text.partition(": ")
    return f"{reason}: the same" if message and first == f"done; {message}" else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
