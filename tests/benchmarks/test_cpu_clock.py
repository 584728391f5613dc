"""Processor time of a process and its children: none counts twice, none is forgotten."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cmamil_sdk.benchmarks.cpu_clock import processor_time_s

BUSY = """
import sys, time
while time.process_time() < 0.3: pass
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="running children are counted on Linux only")
def test_a_child_counts_while_it_runs_and_once_it_has_ended() -> None:
    before = processor_time_s()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = processor_time_s() - before
        assert running >= 0.3
        child.communicate()
    ended = processor_time_s() - before
    assert running <= ended < 2 * running


def test_waiting_is_no_processor_time() -> None:
    before = processor_time_s()
    subprocess.run(["sleep", "0.3"], check=True)
    assert processor_time_s() - before < 0.2
