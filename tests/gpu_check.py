"""Run every test that needs a GPU and print one table: what, outcome, reason or figures.

``make gpu-check``. The figures are what a test gives to pytest's ``record_property``. The status is 0 if
nothing failed and there was something to run or to skip.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cmamil_sdk.cli.output import say, table

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """One test: its name, what became of it, and why or with which figures."""

    what: str
    outcome: str
    details: str


class _Collector:
    """Keeps what pytest reports."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.failures: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported has failed."""
        if report.failed:
            self._fail(report.nodeid, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test counts once: when it has run, or when it is skipped or fails before or after."""
        if report.failed:
            self._fail(report.nodeid, report.longreprtext)
        elif hasattr(report, "wasxfail"):
            reason = report.wasxfail.removeprefix("reason: ")
            self.outcomes.append(Outcome(report.nodeid, "xfailed", reason))
        elif report.skipped:
            assert isinstance(report.longrepr, tuple)
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self.outcomes.append(Outcome(report.nodeid, "skipped", reason))
        elif report.when == "call":
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            self.outcomes.append(Outcome(report.nodeid, "passed", figures))

    def _fail(self, what: str, traceback: str) -> None:
        last = [line for line in traceback.splitlines() if line.strip()][-1]
        self.outcomes.append(Outcome(what, "FAILED", last.strip()))
        self.failures.append(f"{what}\n{traceback}")


def check(paths: Sequence[str]) -> int:
    """Run the tests of these files or folders, print the table, and return the exit status."""
    collector = _Collector()
    options = ("-m", "gpu", "-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(_ROOT))
    # The table stands for pytest's own output, and -ra of the configuration belongs to that.
    quiet = ("-p", "no:terminal", "-o", "addopts=--strict-markers --import-mode=importlib")
    code = pytest.main([*options, *quiet, *paths], plugins=[collector])
    rows = [[o.what.removeprefix("tests/"), o.outcome, o.details] for o in collector.outcomes]
    for failure in collector.failures:
        say(f"{failure}\n")
    say(table(["what", "outcome", "reason or figures"], rows))
    counts = {
        name: sum(o.outcome == name for o in collector.outcomes)
        for name in ("passed", "skipped", "xfailed", "FAILED")
    }
    say("\n" + ", ".join(f"{count} {name.lower()}" for name, count in counts.items()))
    return int(code)


if __name__ == "__main__":
    sys.exit(check(sys.argv[1:] or [str(_ROOT / "tests")]))
