"""One bad slide among several is named; the others are done."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.cli.output import Progress, printable
from cmamil_sdk.cli.slide_runs import each_slide
from cmamil_sdk.errors import SlideCorrupt, SlideNotFound

SLIDES = [Path("a.svs"), Path("b.svs"), Path("c.svs")]


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (SlideCorrupt("b is damaged"), "SLIDE_CORRUPT"),
        (OSError(5, "Input/output error"), "SLIDE_UNREADABLE"),
        (MemoryError(), "MEMORY_TOO_SMALL"),
        (ZeroDivisionError("a surprise"), "UNEXPECTED_ERROR"),
    ],
)
def test_the_others_are_done(problem: Exception, reason: str) -> None:
    done = []

    def work(slide: Path, _progress: Progress) -> None:
        if slide.name == "b.svs":
            raise problem
        done.append(slide.name)

    failures = each_slide(SLIDES, work, stop_on_error=False)
    assert done == ["a.svs", "c.svs"]
    assert [(f["slide"], f["reason"]) for f in failures.slides] == [("b", reason)]
    assert failures.exit_code(len(SLIDES)) == 1


def test_stopping_at_the_first_error() -> None:
    seen = []

    def work(slide: Path, _progress: Progress) -> None:
        seen.append(slide.name)
        raise SlideNotFound("gone")

    failures = each_slide(SLIDES, work, stop_on_error=True)
    assert seen == ["a.svs"]
    assert len(failures.slides) == 1


def test_a_single_slide_has_its_own_status() -> None:
    def work(_slide: Path, _progress: Progress) -> None:
        raise SlideNotFound("gone")

    assert each_slide(SLIDES[:1], work, stop_on_error=False).exit_code(1) == 3
    assert each_slide([], work, stop_on_error=False).exit_code(0) == 0


def test_ctrl_c_is_no_failed_slide() -> None:
    def work(_slide: Path, _progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each_slide(SLIDES, work, stop_on_error=False)


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert printable("caf\udce9.svs") == "caf\\udce9.svs"
    assert printable("naïve 🔬.svs") == "naïve 🔬.svs"
