"""A run over many slides into one folder, shared with every other process that does the same.

Each slide has a lock while it is worked on. One that another process has is passed over and looked at
again at the end, until it is done or its process is gone. ``summary.csv`` tells what became of each.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmamil_sdk.cli.output import note, printable
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.cli.slide_runs import Failures, RunProgress, attempt
from cmamil_sdk.cli.summary import SlideRow, Summary, path_in_summary
from cmamil_sdk.errors import (
    CmamilError,
    OutputUnwritable,
    SlideIdDuplicate,
    error_from_reason,
)
from cmamil_sdk.locks import HeldLock, Locks, holder_of
from cmamil_sdk.wording import counted

_POLL_S = 0.5
_LOCK_NAME_BYTES = 180  # file names end at 255


@dataclass(frozen=True)
class Outcome:
    """What became of a slide that did not fail; the fields are those of its row in the summary."""

    tiles: Mapping[str, int]
    tiles_lost: int
    kept: bool
    seconds: Mapping[str, float] = field(default_factory=dict)
    message: str = ""


@dataclass(frozen=True)
class SlideJob:
    """What is done with each slide of a run.

    Attributes:
        summary: the table of the folder.
        work: does a slide.
        recipe: words that stand for what decides a slide's result, apart from the slide itself.
        outputs: the files or folders that a slide's result consists of; each is written as
            ``.<name>.<process>.tmp`` and renamed.
    """

    summary: Path
    work: Callable[[ListedSlide, RunProgress], Outcome]
    recipe: Callable[[ListedSlide], str]
    outputs: Callable[[ListedSlide], Sequence[Path]]

    def lock(self, slide: ListedSlide) -> Path:
        """Where the lock of a slide lies."""
        # Ids alike up to here would only wait for each other.
        name = os.fsdecode(os.fsencode(slide.slide_id.replace("\0", ""))[:_LOCK_NAME_BYTES])
        return self.summary.with_name(f".{self.summary.stem}.{name}.slide.lock")


@dataclass
class SharedRun:
    """What a run did and found.

    Attributes:
        rows: of the slides that are done, kept or failed, by path, in the order of the list.
        others: which of them other processes did during this run, by path.
        failures: those that failed, whoever did them.
    """

    rows: dict[Path, SlideRow] = field(default_factory=dict)
    others: set[Path] = field(default_factory=set)
    failures: Failures = field(default_factory=Failures)

    def complete(self) -> list[tuple[Path, SlideRow]]:
        """The slides whose results are there."""
        return [(path, row) for path, row in self.rows.items() if row.status != "failed"]

    def fresh(self) -> list[SlideRow]:
        """Rows of the slides that this process did anew."""
        return [r for p, r in self.complete() if p not in self.others and r.status == "done"]


def share_slides(slides: Sequence[ListedSlide], job: SlideJob, *, stop_on_error: bool) -> SharedRun:
    """Do every slide that no other process has done or is doing, and wait for the latter.

    Raises:
        OutputExists: the summary is not one of ours.
        OutputUnwritable: the folder may not be written to, or the disk is full.
        KeyboardInterrupt: after saying what is complete.
    """
    summary, run = Summary(job.summary), SharedRun()
    with RunProgress(len(slides)) as progress:
        try:
            _Sharer(job, summary, run, progress).do_all(slides, stop_on_error)
        except KeyboardInterrupt:
            note(
                f"{len(run.complete())} of {counted(len(slides), 'slide')} complete, as {job.summary} "
                "tells; the same command goes on with the others."
            )
            raise
    run.rows = {s.path: run.rows[s.path] for s in slides if s.path in run.rows}
    return run


@dataclass
class _Sharer:
    """One run at work."""

    job: SlideJob
    summary: Summary
    run: SharedRun
    progress: RunProgress
    locks: Locks = field(default_factory=Locks)

    def do_all(self, slides: Sequence[ListedSlide], stop_on_error: bool) -> None:
        left, passed_over = list(slides), set[Path]()
        while left:
            busy = []
            for slide in left:
                lock = self._taken(slide)
                if lock is None:
                    busy.append(slide)
                    if slide.path not in passed_over:
                        passed_over.add(slide.path)
                        self.progress.meter.elsewhere()
                    continue
                with lock:
                    self._do(slide, lock, known=slide.path in passed_over)
                if stop_on_error and self.run.failures.slides:
                    return
            if busy and len(busy) == len(left):
                holder = holder_of(self.job.lock(busy[0]))
                self.progress.waiting(
                    f"waiting for {counted(len(busy), 'slide')} in other processes "
                    f"({printable(busy[0].slide_id)}: {holder})"
                )
                time.sleep(_POLL_S)
            left = busy

    def _taken(self, slide: ListedSlide) -> HeldLock | None:
        path = self.job.lock(slide)
        try:
            return self.locks.take(path)
        except OSError as problem:
            raise OutputUnwritable(
                f"The lock file {path} cannot be made ({problem.strerror}); change the permissions of "
                "its folder, or free space."
            ) from problem

    def _do(self, slide: ListedSlide, lock: HeldLock, *, known: bool) -> None:
        """Do a slide whose lock we have, unless another process has done it; ``known`` as its slide."""
        recipe, outputs = self.job.recipe(slide), self.job.outputs(slide)
        if lock.taken_over:
            _remove_unfinished(outputs)
        row = self.summary.found_meanwhile(slide.slide_id, recipe)
        other = None if row is None else _another_slide(slide.path, row)
        error: CmamilError | None
        if row is not None and other is not None:
            error = other
        elif (
            row is not None
            and row.path == path_in_summary(slide.path)
            and (row.status == "failed" or all(_is_there(o) for o in outputs))
        ):
            if not known:
                self.progress.meter.elsewhere()
            self.run.others.add(slide.path)
            error = error_from_reason(row.reason, row.message) if row.status == "failed" else None
            self.run.rows[slide.path] = row
        else:  # under another path it may be the same slide, which the work itself can tell
            done, error = self._attempted(slide, recipe)
            self.run.rows[slide.path] = self.summary.record(done)
        if error is not None:
            self.run.failures.add(slide, error)

    def _attempted(self, slide: ListedSlide, recipe: str) -> tuple[SlideRow, CmamilError | None]:
        found: list[Outcome] = []

        def work(slide: ListedSlide, progress: RunProgress) -> None:
            found.append(self.job.work(slide, progress))

        error = attempt(slide, work, self.progress)
        if error is not None:
            if any(_is_there(output) for output in self.job.outputs(slide)):
                error = type(error)(f"{error} What an earlier run has left of it is still there.")
            return SlideRow.of_failure(slide.slide_id, slide.path, recipe, error), error
        (outcome,) = found
        row = SlideRow(
            slide=printable(slide.slide_id),
            path=path_in_summary(slide.path),
            status="kept" if outcome.kept else "done",
            recipe=recipe,
            message=outcome.message,
            tiles=outcome.tiles,
            tiles_lost=outcome.tiles_lost,
            seconds=outcome.seconds,
        )
        return row, None


def _another_slide(path: Path, row: SlideRow) -> SlideIdDuplicate | None:
    """The error of a slide whose id another process has just given to another file."""
    try:
        if path.samefile(row.path):
            return None
    except (OSError, ValueError):
        return None  # one of them is not seen from here
    return SlideIdDuplicate(
        f"{path} and {row.path}, which {row.process} has worked on meanwhile, have the same slide id "
        f"{printable(path.stem)!r}; rename one, or give them folders of their own."
    )


def _is_there(output: Path) -> bool:
    try:
        return output.exists()
    except (OSError, ValueError):
        return False  # under a name that cannot be there


def _remove_unfinished(outputs: Sequence[Path]) -> None:
    """Remove what a killed process was writing; whoever has the slide's lock may."""
    for output in outputs:
        unfinished = re.compile(rf"\.{re.escape(output.name)}\.\d+\.tmp")
        for path in output.parent.iterdir() if output.parent.is_dir() else ():
            if not unfinished.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


__all__ = ["Outcome", "SharedRun", "SlideJob", "share_slides"]
