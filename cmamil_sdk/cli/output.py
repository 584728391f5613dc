"""What commands print: JSON or tables on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cmamil_sdk.errors import OutputUnwritable

_PLAIN_INTERVAL_S = 5.0


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def say_json(document: object) -> None:
    """One JSON document on standard output."""
    say(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def printable(text: str) -> str:
    """Text whose bytes were no UTF-8 (file names may hold any) as something that can be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def output_folder(folder: Path) -> None:
    """Make ``folder`` before the work begins, so that an hour's work is not lost at its end.

    Raises:
        OutputUnwritable: it cannot be made, is a file, or may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputUnwritable(
            f"The folder {folder} cannot be made ({problem.strerror}); choose another."
        ) from problem
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputUnwritable(
            f"The folder {folder} may not be written to; change its permissions, or choose another."
        )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns padded to their widest cell; numbers stand to the right."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max([len(title), *(len(row[i]) for row in cells)]) for i, title in enumerate(header)]
    right = [
        bool(rows) and all(isinstance(r[i], (int, float)) for r in rows) for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        padded = [
            v.rjust(w) if to_right else v.ljust(w)
            for v, w, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), *(line(row) for row in cells)])


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere; always on standard error."""

    def __init__(self, title: str = "", *, time_left: bool = True) -> None:
        """Progress of the work called ``title``; ``time_left`` estimates how long it still takes."""
        self._title, self._time_left = title, time_left
        self._terminal = sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._terminal:
            from rich.console import Console
            from rich.progress import Progress as RichProgress

            columns = RichProgress.get_default_columns()
            shown = columns if self._time_left else columns[:-1]
            self._bar = RichProgress(*shown, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int | None, detail: str = "") -> None:
        """Show ``done`` of ``total``, or, while that is not known, ``detail`` alone."""
        title = f"{self._title} {detail}".strip()
        if self._bar is not None:
            if total is None:  # to rich None means "as it was"
                self._bar.remove_task(self._task)
                self._task = self._bar.add_task(_as_it_is(title), total=None)
            shown = _as_it_is(title)
            self._bar.update(self._task, completed=done, total=total, description=shown)
        elif time.monotonic() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            note(title if total is None else f"{title}: {done} of {total}")


def _as_it_is(text: str) -> str:
    """Text that rich shows as it is: a name may look like its markup."""
    from rich.markup import escape

    return escape(text)


__all__ = ["Progress", "note", "output_folder", "printable", "say", "say_json", "table"]
