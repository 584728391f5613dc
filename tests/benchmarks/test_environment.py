"""What is told of the machine."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

from cmamil_sdk.benchmarks.environment import describe_machine, load_average
from cmamil_sdk.machine import available_cores, peak_rss_mb


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = describe_machine()
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == np.__version__
    assert found["thread_variables"]["OMP_NUM_THREADS"] == "1"
    assert found["cpu"]
    assert found["cores"] == available_cores() >= 1


def test_load_average_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse)
    assert load_average() is None


def test_peak_memory_keeps_what_was_freed() -> None:
    before = peak_rss_mb()
    block = np.ones(int(before * 1e6 / 8) + 8_000_000)
    del block
    assert peak_rss_mb() >= before + 60
