"""Do something to each of several slides; a bad one is named and the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmamil_sdk.cli.output import Progress, note, printable
from cmamil_sdk.errors import CmamilError, MemoryTooSmall, SlideUnreadable, UnexpectedError


@dataclass
class Failures:
    """The slides that failed: what is printed of each, and the exit status that follows."""

    slides: list[dict[str, str]] = field(default_factory=list)
    first: CmamilError | None = None

    def add(self, slide: Path, error: CmamilError) -> None:
        """Note a failed slide, and say so on standard error."""
        self.first = self.first or error
        message = printable(str(error))
        self.slides.append(
            {"slide": printable(slide.stem), "reason": error.reason, "message": message}
        )
        note(f"{printable(slide.name)}: {error.reason}: {message}")

    def exit_code(self, slides: int) -> int:
        """0 if none failed; with a single slide its own status; else 1."""
        if self.first is None:
            return 0
        return self.first.exit_code if slides == 1 else 1


def each_slide(
    slides: Sequence[Path], work: Callable[[Path, Progress], None], *, stop_on_error: bool
) -> Failures:
    """Call ``work`` on every slide in turn; whatever it raises fails that slide alone."""
    failures = Failures()
    for number, slide in enumerate(slides, start=1):
        title = f"{printable(slide.name)} ({number} of {len(slides)})"
        try:
            with Progress(title) as progress:
                work(slide, progress)
        except CmamilError as error:
            failures.add(slide, error)
        except OSError as problem:
            failures.add(slide, SlideUnreadable(f"{slide}: {problem}; check file and folder."))
        except MemoryError:
            shown = f"{slide} needs more memory than this machine gives"
            failures.add(
                slide, MemoryTooSmall(f"{shown}; use fewer --workers, or a larger machine.")
            )
        except Exception as problem:  # noqa: BLE001 - one slide's surprise must not end the others
            note(traceback.format_exc())
            shown = f"{type(problem).__name__}: {problem}"
            failures.add(slide, UnexpectedError(f"{slide}: {shown}; report this."))
        if failures.slides and stop_on_error:
            break
    return failures


__all__ = ["Failures", "each_slide"]
