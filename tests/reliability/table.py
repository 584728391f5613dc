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
    """One file: its name and what it is, and per reader what each command said of it."""

    name: str
    what: str
    outcomes: Mapping[str, tuple[str, ...]]


def table(rows: Iterable[Row], commands: Sequence[str] = ("inspect", "features")) -> list[str]:
    """Markdown lines; readers that came to the same share a line."""
    heads = ("file", "reader", *(f"`{command}`" for command in commands))
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        name = f"`{row.name}`: {row.what}" if row.what else f"`{row.name}`"
        same: dict[tuple[str, ...], list[str]] = {}
        for reader, outcome in row.outcomes.items():
            same.setdefault(outcome, []).append(reader)
        for (first, *later), readers in same.items():
            shown = "each" if len(readers) == len(row.outcomes) else ", ".join(readers)
            said = [first, *(_shortened(text, first) for text in later)]
            lines.append(f"| {' | '.join([name, shown, *map(_cell, said)])} |")
            name = ""
    return lines


def plain(message: str, folders: Sequence[Path]) -> str:
    """A message without what differs between machines: folders and user."""
    for folder in folders:
        message = message.replace(f"{folder}/", "")
    return re.sub(r"by user \d+", "by user N", message)


def check_section(name: str, lines: Sequence[str]) -> None:
    """Compare a section of the page with ``lines``, or write them there if that was asked for."""
    start, end = f"<!-- {name}: written by tests/reliability -->", f"<!-- {name}: end -->"
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(start)
    stands, _, after = rest.partition(end)
    assert after, f"docs/reliability.md has no section {name}"
    body = "\n".join(["", "", *lines, "", ""])
    if REWRITE:
        PAGE.write_text(before + start + body + end + after, "utf-8")
        return
    assert stands == body, "run `make reliability-tables` and look at what changed"


def _shortened(text: str, first: str) -> str:
    """What a command said, without repeating what the first one did."""
    if text == first:
        return "the same"
    reason, _, message = text.partition(": ")
    return f"{reason}: the same" if message and first == f"done; {message}" else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
