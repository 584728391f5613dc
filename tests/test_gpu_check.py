"""``make gpu-check``: one table with every GPU test, whatever became of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu_check.py")

TESTS = """
import pytest

pytestmark = pytest.mark.gpu

def test_measured(record_property):
    record_property("tiles_per_s", 4437)

def test_plain():
    pass

@pytest.mark.skipif(True, reason="no device today")
def test_skipped():
    raise AssertionError

def test_expected():
    pytest.xfail("known to differ")
"""


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_some.py").write_text(tests)
    return subprocess.run(
        [sys.executable, PROGRAM, folder], capture_output=True, text=True, timeout=100, check=False
    )


def test_the_table_names_every_test_with_its_reason_or_figures(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS + "\n@pytest.mark.slow\ndef test_other():\n    pass\n")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [re.split(r" {2,}", line.rpartition("::")[2]) for line in done.stdout.splitlines()]
    assert ["test_measured", "passed", "tiles_per_s 4437"] in lines
    assert ["test_skipped", "skipped", "no device today"] in lines
    assert ["test_expected", "xfailed", "known to differ"] in lines
    assert done.stdout.count("what ") == 1
    assert done.stdout.rstrip().endswith("3 passed, 1 skipped, 1 xfailed, 0 failed")


def test_a_failure_is_shown_and_fails(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS + "\ndef test_wrong():\n    assert 1 == 2, 'so it is'\n")
    assert done.returncode == 1
    assert re.search(r"::test_wrong +FAILED", done.stdout)
    assert "so it is" in done.stdout
    assert "2 passed, 1 skipped, 1 xfailed, 1 failed" in done.stdout


def test_a_file_that_cannot_be_imported_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "import nothing_of_this_name\n")
    assert done.returncode != 0
    assert "nothing_of_this_name" in done.stdout
    assert "1 failed" in done.stdout


def test_nothing_to_run_is_no_success(tmp_path: Path) -> None:
    assert run(tmp_path, "def test_on_any_machine():\n    pass\n").returncode != 0


def test_make_runs_it() -> None:
    makefile = (PROGRAM.parents[1] / "Makefile").read_text(encoding="utf-8")
    assert "gpu-check: setup\n\t$(BIN)/python tests/gpu_check.py\n" in makefile


@pytest.mark.parametrize(
    "module",
    [
        "engines/test_cuda.py",
        "engines/test_torch_device.py",
        "features/test_on_device.py",
        "slides/test_cucim_cuda.py",
    ],
)
def test_there_are_gpu_tests(module: str) -> None:
    assert "pytest.mark.gpu" in (PROGRAM.parent / module).read_text(encoding="utf-8")
