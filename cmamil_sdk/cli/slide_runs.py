"""Do something to each of several slides; a bad one is named and the others go on."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cmamil_sdk.cli.output import Progress, note, printable
from cmamil_sdk.cli.run_meter import RunMeter
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.errors import (
    CmamilError,
    MemoryTooSmall,
    OutputUnwritable,
    SlideUnreadable,
    UnexpectedError,
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What the system says to writers alone."""


@dataclass
class Failures:
    """The slides that failed: what is printed of each, and the exit status that follows."""

    slides: list[dict[str, str]] = field(default_factory=list)
    first: CmamilError | None = None

    def add(self, slide: ListedSlide, error: CmamilError) -> None:
        """Note a failed slide, and say so on standard error."""
        self.first = self.first or error
        message = printable(str(error))
        self.slides.append(
            {"slide": printable(slide.slide_id), "reason": error.reason, "message": message}
        )
        note(f"{printable(slide.path.name)}: {error.reason}: {message}")

    def exit_code(self, slides: int) -> int:
        """0 if none failed; with a single slide its own status; else 1."""
        if self.first is None:
            return 0
        return self.first.exit_code if slides == 1 else 1


class RunProgress:
    """Draws one run over several slides: where it is, its speed, and the time left.

    A context manager; :attr:`meter` counts.
    """

    def __init__(self, slides: int) -> None:
        """Of a run over so many slides."""
        self.meter = RunMeter(slides)
        self._progress = Progress(time_left=False)  # the meter's is for the whole run
        self._slide = ""

    def begin(self, slide: ListedSlide) -> None:
        """A slide is taken up."""
        self._slide = printable(slide.path.name)
        self.meter.begin()
        self._progress.update(0, None, self._title())

    def update(self, done: int, total: int, stage: str = "") -> None:
        """So many tiles of it are done."""
        self.meter.advance(done, total)
        self._progress.update(done, total, f"{self._title()} {stage}".rstrip())

    def waiting(self, text: str) -> None:
        """Show that nothing can be done but wait."""
        self._progress.update(0, None, text)

    def __enter__(self) -> RunProgress:
        """Start drawing."""
        self._progress.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the bar."""
        self._progress.close()

    def _title(self) -> str:
        return f"{self._slide} ({self.meter.text()})"


Work = Callable[[ListedSlide, RunProgress], None]


def each_slide(slides: Sequence[ListedSlide], work: Work, *, stop_on_error: bool) -> Failures:
    """Call ``work`` on every slide in turn; whatever it raises fails that slide alone.

    Raises:
        OutputUnwritable: nothing can be written any more, so the other slides would fail as well.
    """
    failures = Failures()
    with RunProgress(len(slides)) as progress:
        for slide in slides:
            error = attempt(slide, work, progress)
            if error is not None:
                failures.add(slide, error)
                if stop_on_error:
                    break
    return failures


def attempt(slide: ListedSlide, work: Work, progress: RunProgress) -> CmamilError | None:
    """Do one slide; returns what went wrong with it.

    Raises:
        OutputUnwritable: the disk is full, or the folder may not be written to any more.
    """
    progress.begin(slide)
    try:
        work(slide, progress)
    except OutputUnwritable:
        raise
    except CmamilError as error:
        return error
    except OSError as problem:
        if problem.errno in _NO_ROOM:
            raise OutputUnwritable(
                f"{slide.path}: its results cannot be written ({problem}); free space, and start "
                "again to go on."
            ) from problem
        return SlideUnreadable(f"{slide.path}: {problem}; check file and folder.")
    except MemoryError:
        return MemoryTooSmall(
            f"{slide.path} needs more memory than this machine gives; use fewer --workers, or a larger "
            "machine."
        )
    except Exception as problem:  # noqa: BLE001 - one slide's surprise must not end the others
        note(traceback.format_exc())
        shown = f"{type(problem).__name__}: {problem}"
        return UnexpectedError(f"{slide.path}: {shown}; report this.")
    finally:
        progress.meter.end()
    return None


__all__ = ["Failures", "RunProgress", "Work", "attempt", "each_slide"]
