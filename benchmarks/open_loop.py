"""An open loop: calls come when they come, whether or not earlier ones have been answered.

A closed loop waits for a slow answer and so asks less just when it would have to wait; here a late answer
counts as late, from the moment at which its call was due.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cmamil_sdk.errors import QueueFull

from .closed_loop import Loop
from .windows import Window

MOST_WAITING = 128
"""Calls on their way at a time; more come late, and are counted from when they were due."""


@dataclass(frozen=True)
class Arrivals:
    """Windows of an open loop, and how many calls were refused because the queue was full."""

    windows: tuple[Window, ...]
    refused: int


def measure_arrivals(
    call: Callable[[], object], *, rate_per_s: float, tiles: int, loop: Loop, seed: int = 0
) -> Arrivals:
    """Make calls at random moments, ``rate_per_s`` in the mean (Poisson), window after window.

    Every window has the same moments, so that windows differ by the machine and not by chance. A window
    ends when all its calls are answered or refused. Warm-up is the caller's.
    """
    count = max(loop.min_samples, math.ceil(loop.duration_s * rate_per_s))
    gaps_s = np.random.default_rng(seed).exponential(1.0 / rate_per_s, count)
    due_s = np.cumsum(gaps_s).tolist()
    refusals: list[None] = []
    with ThreadPoolExecutor(MOST_WAITING) as pool:
        windows = tuple(_window(pool, call, due_s, tiles, refusals) for _ in range(loop.windows))
    return Arrivals(windows, len(refusals))


def _window(
    pool: ThreadPoolExecutor,
    call: Callable[[], object],
    due_s: list[float],
    tiles: int,
    refusals: list[None],
) -> Window:
    latencies: list[float] = []
    cpu_started, started = time.process_time(), time.perf_counter()

    def work(due: float) -> None:
        try:
            call()
        except QueueFull:
            refusals.append(None)
        else:
            latencies.append(time.perf_counter() - due)

    calls = []
    for offset_s in due_s:
        due = started + offset_s
        time.sleep(max(0.0, due - time.perf_counter()))
        calls.append(pool.submit(work, due))
    for each in calls:
        each.result()
    return Window(
        latencies_s=tuple(latencies),
        wall_s=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_started,
        tiles=tiles * len(latencies),
    )


__all__ = ["MOST_WAITING", "Arrivals", "measure_arrivals"]
