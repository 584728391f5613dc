"""``summary.csv``: what became of each slide of a folder, over all runs and processes that fill it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, get_args

from cmamil_sdk.cli.output import printable
from cmamil_sdk.errors import CmamilError, OutputExists, OutputUnwritable
from cmamil_sdk.files import csv_text, write_atomic
from cmamil_sdk.locks import Locks, this_process

SUMMARY = "summary.csv"

Status = Literal["done", "kept", "failed"]

STAGES = ("open", "tissue", "decode", "encode", "write", "total")
"""Stages of a slide whose seconds have a column."""

COLUMNS = (
    *("slide", "path", "status", "reason", "message", "tiles", "tiles_by_scale", "tiles_lost"),
    *(f"seconds_{stage}" for stage in STAGES),
    *("recipe", "process", "finished"),
)


@dataclass(frozen=True)
class SlideRow:
    """One slide.

    Attributes:
        slide: its id.
        path: the slide file, from the root.
        status: ``done`` now, ``kept`` because it was complete, ``failed``.
        reason, message: of a failed slide, its error; ``message`` also tells what is notable otherwise.
        tiles: per scale.
        tiles_lost: tiles that could not be decoded.
        seconds: per stage of :data:`STAGES`, those that are known; of a kept slide, those of the work
            that made its file.
        recipe: stands for everything that decided the result, apart from the slide.
        process: which did it.
        finished: when, ISO 8601.
    """

    slide: str
    path: str
    status: Status
    recipe: str
    reason: str = ""
    message: str = ""
    tiles: Mapping[str, int] = field(default_factory=dict)
    tiles_lost: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    process: str = field(default_factory=this_process)
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of_failure(cls, slide: str, path: Path, recipe: str, error: CmamilError) -> Self:
        """The row of a slide that failed with ``error``."""
        return cls(
            slide=printable(slide),
            path=path_in_summary(path),
            status="failed",
            recipe=recipe,
            reason=error.reason,
            message=printable(str(error)),
        )

    def cells(self) -> list[str]:
        """Values by :data:`COLUMNS`; what is not known is empty."""
        known = self.status != "failed"
        by_scale = " ".join(f"{name}={count}" for name, count in self.tiles.items())
        return [
            *(self.slide, self.path, self.status, self.reason, self.message),
            str(sum(self.tiles.values())) if known else "",
            by_scale,
            str(self.tiles_lost) if known else "",
            *(f"{self.seconds[s]:.3f}" if s in self.seconds else "" for s in STAGES),
            *(self.recipe, self.process, self.finished),
        ]

    @classmethod
    def of_cells(cls, cells: Mapping[str, str]) -> Self:
        """The row that :meth:`cells` wrote; ValueError if it did not."""
        status = next((s for s in get_args(Status) if s == cells["status"]), None)
        if status is None:
            raise ValueError(f"there is no status {cells['status']!r}")
        pairs = [entry.rpartition("=") for entry in cells["tiles_by_scale"].split()]
        stages = {stage: cells[f"seconds_{stage}"] for stage in STAGES}
        return cls(
            slide=cells["slide"],
            path=cells["path"],
            status=status,
            reason=cells["reason"],
            message=cells["message"],
            tiles={name: int(count) for name, _, count in pairs},
            tiles_lost=int(cells["tiles_lost"] or 0),
            seconds={stage: float(value) for stage, value in stages.items() if value},
            recipe=cells["recipe"],
            process=cells["process"],
            finished=cells["finished"],
        )


def path_in_summary(slide: Path) -> str:
    """How the table names a slide file, whatever directory a process works in."""
    return printable(str(slide.absolute()))


class Summary:
    """The table of a folder, which several processes may write at once.

    Raises:
        OutputExists: there is another file of that name, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        """Look at what is there."""
        self.path = path
        self._locks = Locks()
        self._before = self.rows()

    def rows(self) -> dict[str, SlideRow]:
        """All rows by slide id, sorted."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                if tuple(reader.fieldnames or ()) != COLUMNS:
                    raise self._foreign("its columns are others")
                rows = [SlideRow.of_cells(cells) for cells in reader]
        except FileNotFoundError:
            return {}
        except OSError as problem:
            raise self._foreign(problem.strerror or str(problem)) from problem
        except (ValueError, AttributeError, TypeError, csv.Error) as problem:
            raise self._foreign(str(problem)) from problem
        return {row.slide: row for row in sorted(rows, key=lambda row: row.slide)}

    def record(self, row: SlideRow) -> SlideRow:
        """Put a row in place of the slide's old one; returns it as it was written.

        A kept slide keeps the seconds of the work that made its file.

        Raises:
            OutputUnwritable: the file cannot be written.
        """
        with self._sole_writer():
            rows = self.rows()
            old = rows.get(row.slide)
            if row.status == "kept" and old is not None and _same_result(old, row):
                row = replace(row, seconds=old.seconds)
            rows[row.slide] = row
            text = csv_text(COLUMNS, [rows[name].cells() for name in sorted(rows)])
            write_atomic(self.path, text.encode())
        return row

    def found_meanwhile(self, slide: str, recipe: str) -> SlideRow | None:
        """The row that another process has written since this summary was made, of the same recipe."""
        row = self.rows().get(printable(slide))
        if row is None or row.recipe != recipe or row == self._before.get(row.slide):
            return None
        return None if row.process == this_process() else row

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            with self._locks.wait(lock):
                yield
        except OSError as problem:
            raise OutputUnwritable(
                f"{self.path} cannot be written ({problem.strerror}); free space, or change the "
                "permissions of its folder."
            ) from problem

    def _foreign(self, why: str) -> OutputExists:
        return OutputExists(
            f"{self.path} is no summary that this version can go on with ({why}); rename or remove it."
        )


def _same_result(old: SlideRow, new: SlideRow) -> bool:
    return old.status != "failed" and (old.recipe, old.tiles) == (new.recipe, new.tiles)


__all__ = ["COLUMNS", "STAGES", "SUMMARY", "SlideRow", "Status", "Summary", "path_in_summary"]
