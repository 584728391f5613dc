"""One bad slide among several is named; the others are done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cmamil_sdk.cli.output import printable
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.cli.slide_runs import RunProgress, each_slide
from cmamil_sdk.errors import OutputUnwritable, SlideCorrupt, SlideNotFound

SLIDES = [ListedSlide(Path(name)) for name in ("a.svs", "b.svs", "c.svs")]


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

    def work(slide: ListedSlide, _progress: RunProgress) -> None:
        if slide.path.name == "b.svs":
            raise problem
        done.append(slide.path.name)

    failures = each_slide(SLIDES, work, stop_on_error=False)
    assert done == ["a.svs", "c.svs"]
    assert [(f["slide"], f["reason"]) for f in failures.slides] == [("b", reason)]
    assert failures.exit_code(len(SLIDES)) == 1


def test_stopping_at_the_first_error() -> None:
    seen = []

    def work(slide: ListedSlide, _progress: RunProgress) -> None:
        seen.append(slide.path.name)
        raise SlideNotFound("gone")

    failures = each_slide(SLIDES, work, stop_on_error=True)
    assert seen == ["a.svs"]
    assert len(failures.slides) == 1


def test_a_single_slide_has_its_own_status() -> None:
    def work(_slide: ListedSlide, _progress: RunProgress) -> None:
        raise SlideNotFound("gone")

    assert each_slide(SLIDES[:1], work, stop_on_error=False).exit_code(1) == 3
    assert each_slide([], work, stop_on_error=False).exit_code(0) == 0


@pytest.mark.parametrize("problem", [OSError(28, "No space left"), OutputUnwritable("read-only")])
def test_where_nothing_can_be_written_the_run_ends(problem: Exception) -> None:
    seen = []

    def work(slide: ListedSlide, _progress: RunProgress) -> None:
        seen.append(slide.path.name)
        raise problem

    with pytest.raises(OutputUnwritable):
        each_slide(SLIDES, work, stop_on_error=False)
    assert seen == ["a.svs"]


def test_plain_lines_tell_where_the_run_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cmamil_sdk.cli.output._PLAIN_INTERVAL_S", 0.0)

    def work(_slide: ListedSlide, progress: RunProgress) -> None:
        progress.update(3, 9)

    each_slide(SLIDES, work, stop_on_error=False)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "a.svs (1 of 3)"
    assert re.fullmatch(r"c\.svs \(3 of 3, \d+ tiles/s, about \d+ s left\): 3 of 9", said[-1])


def test_ctrl_c_is_no_failed_slide() -> None:
    def work(_slide: ListedSlide, _progress: RunProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each_slide(SLIDES, work, stop_on_error=False)


def test_names_that_are_no_utf8_can_be_printed() -> None:
    assert printable("caf\udce9.svs") == "caf\\udce9.svs"
    assert printable("naïve 🔬.svs") == "naïve 🔬.svs"
