"""Statistics of a closed-loop measurement: percentiles, windows, and whether they agree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PERCENTS = (50, 90, 95, 99)

STABLE_SPREAD = 1.10
"""Windows agree if the largest of a figure is at most this many times the smallest."""

MIN_WINDOWS = 3

SAMPLES_FOR_P95 = 20


@dataclass(frozen=True)
class Window:
    """One window of a closed loop: requests made one after another.

    Attributes:
        latencies_s: of each request, in order, seconds.
        wall_s: from the first request's start to the last one's end, seconds.
        cpu_s: processor time of the whole process in that time, all threads, seconds.
        tiles: processed in that time.
    """

    latencies_s: tuple[float, ...]
    wall_s: float
    cpu_s: float
    tiles: int

    @property
    def tiles_per_s(self) -> float:
        """Throughput."""
        return self.tiles / self.wall_s


@dataclass(frozen=True)
class Stability:
    """How far windows differ: largest over smallest of their throughputs and of their p95.

    ``p95_spread`` is None when a window holds too few samples for a p95. ``verdict`` is ``stable``
    when both are at most :data:`STABLE_SPREAD`, ``too few samples`` when the throughputs agree but a
    window has no p95, else ``unstable``.
    """

    throughput_spread: float
    p95_spread: float | None
    verdict: str


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The smallest value that ``percent`` % of ``values`` do not exceed (nearest rank).

    It is always one of the values. None when the tail above it would hold less than one value:
    fewer than 2 values for p50, 10 for p90, 20 for p95, 100 for p99.
    """
    n = len(values)
    if n * (100 - percent) < 100:
        return None
    return sorted(values)[-(-n * percent // 100) - 1]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """:data:`PERCENTS` of ``values`` by name (``p50``, ...)."""
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTS}


def stability(windows: Sequence[Window]) -> Stability:
    """Compare windows by the rule of :class:`Stability`."""
    throughput = _spread([window.tiles_per_s for window in windows])
    tails = [percentile(window.latencies_s, 95) for window in windows]
    known = [tail for tail in tails if tail is not None]
    p95 = _spread(known) if len(known) == len(tails) else None
    if throughput > STABLE_SPREAD or (p95 is not None and p95 > STABLE_SPREAD):
        verdict = "unstable"
    else:
        verdict = "stable" if p95 is not None else "too few samples"
    return Stability(throughput, p95, verdict)


def median_tiles_per_s(windows: Sequence[Window]) -> float:
    """Median of the windows' throughputs."""
    return statistics.median(window.tiles_per_s for window in windows)


def window_figures(window: Window) -> dict[str, Any]:
    """One window as a document holds it."""
    return {
        "n": len(window.latencies_s),
        "wall_s": window.wall_s,
        "cpu_s": window.cpu_s,
        "tiles": window.tiles,
        "tiles_per_s": window.tiles_per_s,
        "latency_s": percentiles(window.latencies_s),
        "latencies_s": list(window.latencies_s),
    }


def figures(windows: Sequence[Window]) -> dict[str, Any]:
    """All windows together: whether they agree, latencies, throughput and processor time."""
    latencies = [value for window in windows for value in window.latencies_s]
    agreement = stability(windows)
    cpu_s = sum(window.cpu_s for window in windows)
    return {
        "verdict": agreement.verdict,
        "throughput_spread": agreement.throughput_spread,
        "p95_spread": agreement.p95_spread,
        "n": len(latencies),
        "latency_s": {
            **percentiles(latencies),
            "min": min(latencies),
            "mean": sum(latencies) / len(latencies),
            "max": max(latencies),
        },
        "tiles_per_s": median_tiles_per_s(windows),
        "cpu_s_per_tile": cpu_s / sum(window.tiles for window in windows),
        "cores_busy": cpu_s / sum(window.wall_s for window in windows),
    }


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values)


__all__ = [
    "MIN_WINDOWS",
    "PERCENTS",
    "SAMPLES_FOR_P95",
    "STABLE_SPREAD",
    "Stability",
    "Window",
    "figures",
    "median_tiles_per_s",
    "percentile",
    "percentiles",
    "stability",
    "window_figures",
]
