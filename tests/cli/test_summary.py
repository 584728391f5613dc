"""The table of a folder: whole, true, and shared by several processes."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cmamil_sdk.cli.summary import COLUMNS, STAGES, SlideRow, Summary
from cmamil_sdk.errors import OutputExists, OutputUnwritable, SlideCorrupt

DONE = SlideRow(
    slide="a",
    path="slides/a.svs",
    status="done",
    recipe="k",
    tiles={"5x": 1, "20x": 16},
    tiles_lost=2,
    seconds={stage: float(n) for n, stage in enumerate(STAGES)},
)
WRITE = """
import sys
from pathlib import Path
from cmamil_sdk.cli.summary import SlideRow, Summary
path, name = Path(sys.argv[1]), sys.argv[2]
summary = Summary(path)
for n in range(20):
    summary.record(SlideRow(slide=f"{name}{n}", path="p", status="done", recipe="k"))
"""


@pytest.mark.parametrize(
    "name",
    [
        "a,b",
        "two\nlines",
        "carriage\rreturn",
        'a "quoted" one',
        " spaces ",
        "naïve 🔬",
        "=1+1",
        "5x",
    ],
)
def test_any_name_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    row = replace(DONE, slide=name, path=f"slides/{name}.svs")
    Summary(tmp_path / "summary.csv").record(row)
    Summary(tmp_path / "summary.csv").record(DONE)
    assert Summary(tmp_path / "summary.csv").rows() == {name: row, "a": DONE}
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["slide"] for line in lines} == {name, "a"}
    assert {line["tiles"] for line in lines} == {"17"}
    assert {line["tiles_by_scale"] for line in lines} == {"5x=1 20x=16"}


def test_a_failure_says_why_and_has_no_counts(tmp_path: Path) -> None:
    summary = Summary(tmp_path / "summary.csv")
    row = SlideRow.of_failure(
        "caf\udce9", Path("caf\udce9.svs"), "k", SlideCorrupt("it is damaged; copy it again.")
    )
    summary.record(row)
    (found,) = summary.rows().values()
    assert found == row
    assert (found.slide, found.reason) == ("caf\\udce9", "SLIDE_CORRUPT")
    cells = dict(zip(COLUMNS, found.cells(), strict=True))
    assert cells["tiles"] == cells["tiles_lost"] == cells["seconds_total"] == ""


def test_kept_slides_keep_the_seconds_of_the_work(tmp_path: Path) -> None:
    summary = Summary(tmp_path / "summary.csv")
    summary.record(DONE)
    kept = replace(DONE, status="kept", seconds={})
    assert summary.record(kept).seconds == DONE.seconds
    assert summary.rows()["a"].status == "kept"
    other = replace(kept, recipe="another")
    assert summary.record(other).seconds == {}
    failed = SlideRow.of_failure("a", Path("a.svs"), "k", SlideCorrupt("x"))
    summary.record(failed)
    assert summary.record(kept).seconds == {}


def test_rows_of_several_processes_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    Summary(path).record(DONE)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, path, name]) for name in ("x", "y", "z")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert set(Summary(path).rows()) == {"a", *(f"{w}{n}" for w in "xyz" for n in range(20))}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_what_another_process_has_done_meanwhile_is_told_from_what_was_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "summary.csv"
    old = replace(DONE, process="process 1 on elsewhere")
    Summary(path).record(old)
    summary = Summary(path)
    assert summary.found_meanwhile("a", "k") is None, "it was there before"
    new = replace(old, slide="b")
    Summary(path).record(new)
    assert summary.found_meanwhile("b", "k") == new
    assert summary.found_meanwhile("b", "another recipe") is None
    summary.record(replace(DONE, slide="b"))
    assert summary.found_meanwhile("b", "k") is None, "it is our own"


@pytest.mark.parametrize(
    "text", ["slide,label\na,b\n", "", ",".join(COLUMNS) + "\na,b\n", b"\xff\xfe\x00"]
)
def test_a_file_of_that_name_that_is_not_ours_stays(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "summary.csv"
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(data)
    with pytest.raises(OutputExists, match="rename or remove it"):
        Summary(path)
    assert path.read_bytes() == data


def test_a_table_saved_by_a_spreadsheet_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    Summary(path).record(DONE)
    path.write_text(path.read_text().replace("\n", "\r\n"), "utf-8-sig", newline="")
    assert Summary(path).rows() == {"a": DONE}


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    summary = Summary(tmp_path / "gone" / "summary.csv")
    with pytest.raises(OutputUnwritable, match=r"summary\.csv cannot be written"):
        summary.record(DONE)
