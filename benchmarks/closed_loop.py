"""A closed loop: each caller makes its next call when its last one has been answered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cmamil_sdk.errors import FieldInvalid

from .windows import MIN_WINDOWS, SAMPLES_FOR_P95, Window


@dataclass(frozen=True)
class Loop:
    """How long is measured.

    Attributes:
        windows: how many, at least three.
        duration_s: shortest length of a window, seconds.
        min_samples: fewest calls of a window; it goes on beyond ``duration_s`` until it has them.
        warmup: calls of each caller before the first window, not counted.
    """

    windows: int = MIN_WINDOWS
    duration_s: float = 3.0
    min_samples: int = SAMPLES_FOR_P95
    warmup: int = 3

    def __post_init__(self) -> None:
        """Refuse settings that would measure nothing (FieldInvalid)."""
        if self.windows < MIN_WINDOWS:
            raise FieldInvalid(
                f"--windows {self.windows} cannot show whether a measurement is stable; "
                f"give at least {MIN_WINDOWS}."
            )
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise FieldInvalid(
                f"--duration {self.duration_s} is no length of a window; give seconds above 0."
            )
        if self.min_samples < 1 or self.warmup < 1:
            raise FieldInvalid(
                f"--min-samples {self.min_samples} and --warmup {self.warmup} must be 1 or more; "
                "the first call fills caches and is never counted."
            )


def measure_windows(
    call: Callable[[], object], *, callers: int, tiles: int, loop: Loop
) -> list[Window]:
    """Have ``callers`` threads call at once, window after window; a call does ``tiles`` tiles."""
    with ThreadPoolExecutor(callers) as pool:
        call_each(pool, call, callers=callers, calls=loop.warmup * callers)
        return [_window(pool, call, callers, tiles, loop) for _ in range(loop.windows)]


def call_each(
    pool: ThreadPoolExecutor, call: Callable[[], object], *, callers: int, calls: int
) -> None:
    """Make ``calls`` calls, shared out evenly among as many threads at once."""

    def work(count: int) -> None:
        for _ in range(count):
            call()

    shares = [calls // callers + (number < calls % callers) for number in range(callers)]
    for done in [pool.submit(work, share) for share in shares]:
        done.result()


def _window(
    pool: ThreadPoolExecutor, call: Callable[[], object], callers: int, tiles: int, loop: Loop
) -> Window:
    latencies: list[float] = []
    cpu_started, started = time.process_time(), time.perf_counter()

    def work() -> None:
        ended = started
        while ended - started < loop.duration_s or len(latencies) < loop.min_samples:
            begun = time.perf_counter()
            call()
            ended = time.perf_counter()
            latencies.append(ended - begun)

    for done in [pool.submit(work) for _ in range(callers)]:
        done.result()
    return Window(
        latencies_s=tuple(latencies),
        wall_s=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_started,
        tiles=tiles * len(latencies),
    )


__all__ = ["Loop", "call_each", "measure_windows"]
