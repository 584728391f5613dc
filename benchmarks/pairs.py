"""Two things timed in turns: on a machine whose speed drifts only the ratio within a pair counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000

MIN_PAIRS = 5
"""Fewer say nothing about an interval."""


@dataclass(frozen=True)
class Pairs:
    """Times of a baseline and of what is compared with it, seconds, pair by pair."""

    baseline_s: tuple[float, ...]
    ours_s: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Baseline over ours in each pair: above 1, ours is faster."""
        return [b / o for b, o in zip(self.baseline_s, self.ours_s, strict=True)]

    def ratio(self) -> tuple[float, float, float]:
        """Median of :attr:`ratios` with the ends of its 95 % bootstrap interval (percentiles)."""
        values = np.array(self.ratios)
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, len(values), size=(_RESAMPLES, len(values)))
        low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
        return float(np.median(values)), float(low), float(high)


def time_in_turns(
    number: int,
    baseline: Callable[[], object],
    ours: Callable[[], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Seconds of ``baseline`` and of ``ours``; in pairs of odd ``number`` ours goes first.

    On a busy machine ``clock=time.process_time`` tells more: it counts this process's work alone.
    """
    if number % 2:
        ours_s = seconds_of(ours, clock)
        return seconds_of(baseline, clock), ours_s
    baseline_s = seconds_of(baseline, clock)
    return baseline_s, seconds_of(ours, clock)


def spread(values: Sequence[float]) -> float:
    """90th over 10th percentile of times: how unsteady the machine was."""
    low, high = np.quantile(np.asarray(values), [0.1, 0.9])
    return float(high / low)


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long ``work`` takes."""
    started = clock()
    work()
    return clock() - started


__all__ = ["MIN_PAIRS", "Pairs", "seconds_of", "spread", "time_in_turns"]
