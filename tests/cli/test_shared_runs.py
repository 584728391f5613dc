"""Real processes share a folder: no slide is done twice, none is left out, whoever is killed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from cmamil_sdk.cli.shared_runs import Outcome, SharedRun, SlideJob, share_slides
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.cli.slide_runs import RunProgress
from cmamil_sdk.cli.summary import Summary
from cmamil_sdk.errors import OutputUnwritable, SlideCorrupt

PROGRAM = """
import sys
from pathlib import Path
from cmamil_sdk.cli.shared_runs import Outcome, SlideJob, share_slides
from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.errors import SlideCorrupt

out, names, stops_at = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]

def work(slide, progress):
    name = slide.slide_id
    if name == stops_at:
        (out / f".{name}.h5.{1}.tmp").write_text("half")
        print(name, flush=True)
        sys.stdin.readline()
    if name == "bad":
        raise SlideCorrupt("bad is damaged")
    with (out / "log").open("a") as log:
        log.write(f"{name}\\n")
    (out / f"{name}.h5").write_text("whole")
    return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=False)

job = SlideJob(out / "summary.csv", work, lambda slide: "k", lambda slide: [out / f"{slide.slide_id}.h5"])
print("ready", flush=True)
sys.stdin.readline()
run = share_slides([ListedSlide(Path(f"{n}.svs")) for n in names], job, stop_on_error=False)
print(*sorted(path.stem for path in run.others), flush=True)
sys.exit(run.failures.exit_code(len(names)))
"""


class Other:
    """A process that works on the same folder; it begins when it is told to."""

    def __init__(self, out: Path, names: str, stops_at: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, out, names, stops_at],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hears() == "ready"

    def tell(self) -> None:
        pipe: IO[str] | None = self.process.stdin
        assert pipe is not None
        pipe.write("\n")
        pipe.flush()

    def hears(self) -> str:
        pipe: IO[str] | None = self.process.stdout
        assert pipe is not None
        return pipe.readline().strip()

    def end(self, kill: bool = False) -> int:
        if kill:
            self.process.kill()
        code = self.process.wait(timeout=120)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return code


def run_here(
    out: Path, names: str, work: Callable[[ListedSlide, RunProgress], Outcome] | None = None
) -> SharedRun:
    def plain(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        with (out / "log").open("a") as log:
            log.write(f"{slide.slide_id}\n")
        (out / f"{slide.slide_id}.h5").write_text("whole")
        return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=False)

    job = SlideJob(
        summary=out / "summary.csv",
        work=work or plain,
        recipe=lambda _slide: "k",
        outputs=lambda slide: [out / f"{slide.slide_id}.h5"],
    )
    slides = [ListedSlide(Path(f"{name}.svs")) for name in names.split(",")]
    return share_slides(slides, job, stop_on_error=False)


def test_no_slide_is_done_twice_and_none_is_left_out(tmp_path: Path) -> None:
    names = [f"s{n:02}" for n in range(30)]
    others = [Other(tmp_path, ",".join(names)) for _ in range(3)]
    for other in others:
        other.tell()
    run = run_here(tmp_path, ",".join(names))
    assert [other.end() for other in others] == [0, 0, 0]
    assert Counter((tmp_path / "log").read_text().split()) == dict.fromkeys(names, 1)
    assert [path.stem for path in run.rows] == names, "in the order of the list"
    rows = Summary(tmp_path / "summary.csv").rows()
    assert {row.status for row in rows.values()} == {"done"}
    assert list(rows) == names
    left = {p.name for p in tmp_path.iterdir()} - {f"{name}.h5" for name in names}
    assert left == {"log", "summary.csv"}


def test_a_killed_process_loses_its_slide_to_the_others(tmp_path: Path) -> None:
    other = Other(tmp_path, "a,b,c", stops_at="b")
    other.tell()
    assert other.hears() == "b"
    assert (tmp_path / ".b.h5.1.tmp").exists()
    other.end(kill=True)
    assert (tmp_path / ".summary.b.slide.lock").exists()
    run = run_here(tmp_path, "b,c")
    assert set(Summary(tmp_path / "summary.csv").rows()) == {"a", "b", "c"}
    assert [path.stem for path in run.rows] == ["b", "c"]
    assert run.others == set()
    assert (tmp_path / "log").read_text().split() == ["a", "b", "c"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "b.h5", "c.h5", "log", "summary.csv"}


def test_a_slide_in_progress_is_passed_over_and_waited_for(tmp_path: Path) -> None:
    other = Other(tmp_path, "bad,a,b", stops_at="a")

    def work(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        assert slide.slide_id == "b", "a is in progress elsewhere"
        (tmp_path / "b.h5").touch()
        other.tell()  # only now does the other one end a
        return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=False)

    other.tell()
    assert other.hears() == "a"
    run = run_here(tmp_path, "b,a", work)
    assert other.end() == 1, "bad has failed"
    assert run.others == {Path("a.svs")}
    assert list(run.rows) == [Path("b.svs"), Path("a.svs")]
    assert run.rows[Path("a.svs")].process.startswith(f"process {other.process.pid} ")
    assert set(Summary(tmp_path / "summary.csv").rows()) == {"a", "b", "bad"}


def test_a_slide_that_fails_elsewhere_meanwhile_is_not_tried_again(tmp_path: Path) -> None:
    other = Other(tmp_path, "bad")

    def work(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        assert slide.slide_id == "a"
        other.tell()
        assert other.end() == 3
        (tmp_path / "a.h5").touch()
        return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=False)

    run = run_here(tmp_path, "a,bad", work)
    assert run.others == {Path("bad.svs")}
    assert [(f["slide"], f["reason"]) for f in run.failures.slides] == [("bad", "SLIDE_CORRUPT")]
    assert run.failures.exit_code(2) == 1


def test_another_slide_of_the_same_name_elsewhere_is_an_error(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.svs").write_text(folder)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    seen = []

    def work(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        seen.append(slide.path)
        if slide.slide_id == "a":
            other = Other(tmp_path, f"{tmp_path}/one/x")
            other.tell()
            assert other.end() == 0
        (tmp_path / f"{slide.slide_id}.h5").touch()
        return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=slide.slide_id == "x")

    run = run_here(tmp_path, f"a,{tmp_path}/two/x", work)
    assert [failed["reason"] for failed in run.failures.slides] == ["SLIDE_ID_DUPLICATE"]
    assert Summary(tmp_path / "summary.csv").rows()["x"].path == str(tmp_path / "one" / "x.svs")
    run = run_here(tmp_path, f"a,{tmp_path}/link/x", work)
    assert not run.failures.slides
    assert seen[-1] == tmp_path / "link" / "x.svs", "whether it is the same, the work finds out"


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    seen = []

    def work(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        seen.append(slide.slide_id)
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputUnwritable, match="No space left"):
        run_here(tmp_path, "a,b", work)
    assert seen == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_lock_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(OutputUnwritable, match="lock file"):
        run_here(tmp_path / "gone", "a")


def test_what_an_earlier_run_left_of_a_failed_slide_is_named_and_stays(tmp_path: Path) -> None:
    run_here(tmp_path, "a")

    def work(_slide: ListedSlide, _progress: RunProgress) -> Outcome:
        raise SlideCorrupt("a is damaged.")

    run = run_here(tmp_path, "a", work)
    assert "earlier run has left of it is still there" in run.failures.slides[0]["message"]
    assert run.failures.exit_code(1) == 3
    assert (tmp_path / "a.h5").read_text() == "whole"


def test_ctrl_c_says_what_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(slide: ListedSlide, _progress: RunProgress) -> Outcome:
        if slide.slide_id == "b":
            raise KeyboardInterrupt
        (tmp_path / "a.h5").touch()
        return Outcome(tiles={"20x": 1}, tiles_lost=0, kept=False)

    with pytest.raises(KeyboardInterrupt):
        run_here(tmp_path, "a,b", work)
    said = capsys.readouterr().err
    assert "1 of 2 slides complete" in said and "the same command goes on" in said
    assert set(Summary(tmp_path / "summary.csv").rows()) == {"a"}
    assert {p.name for p in tmp_path.iterdir()} == {"a.h5", "summary.csv"}


def test_names_of_any_length_have_locks(tmp_path: Path) -> None:
    run = run_here(tmp_path, "é" * 2000)
    assert len(run.failures.slides) == 1
    assert len(Summary(tmp_path / "summary.csv").rows()) == 1


def test_slides_called_like_the_summary_do_not_block_it(tmp_path: Path) -> None:
    names = "csv,summary,summary.csv,summary.csv.slide"
    assert len(run_here(tmp_path, names).rows) == 4
