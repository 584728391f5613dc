"""What speed is aimed at on 2 cores, and whether a measurement reached it (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure with the value it must reach and the one aimed at; ``at_most``: smaller is better."""

    what: str
    must: float
    aim: float
    at_most: bool = False

    def judge(self, value: float) -> dict[str, Any]:
        """The target with ``value`` and ``aim``, ``must`` or ``missed``."""
        verdict = next(
            (name for name in ("aim", "must") if self._reached(value, getattr(self, name))),
            "missed",
        )
        return {
            "what": self.what,
            "value": value,
            "must": self.must,
            "aim": self.aim,
            "verdict": verdict,
        }

    def _reached(self, value: float, wanted: float) -> bool:
        return value <= wanted if self.at_most else value >= wanted


AGAINST_RECIPE = Target("against CMA-MIL's recipe, default precision", 8.0, 12.0)
AGAINST_BEST = Target("against the best other tool, default precision", 4.0, 5.0)
AGAINST_BEST_FP32 = Target("against the best other tool, fp32", 2.2, 2.5)
SHARE_OF_FLOOR = Target("share of the floor reached", 0.80, 0.92)
SCALES_IN_ONE_PASS = Target("three scales in one pass, against three passes", 2.0, 3.0)
GROWTH = Target(
    "cost per tile, 100,000 tiles over 5,000: end of the interval", 1.1, 1.0, at_most=True
)
PEAK_MEMORY_MB = Target("peak memory of one slide, MB", 600.0, 400.0, at_most=True)
ENCODER_DEFAULT = Target("encoder, default precision, against torch eager fp32", 4.0, 5.0)
ENCODER_INT8 = Target("encoder, int8 that passes its gate, against default precision", 1.0, 1.5)
AGGREGATOR_4000 = Target("aggregator, 4,000 finest tiles, against torch eager", 2.0, 2.5)
AGGREGATOR_64000 = Target("aggregator, 64,000 finest tiles, against torch eager", 1.5, 2.0)
READY_S = Target("a bundle from load to ready, s", 2.0, 1.0, at_most=True)

SERVED_SLIDE = Target(
    "one cold slide through the server, over the local predictor", 1.05, 1.02, at_most=True
)
SERVED_PER_MINUTE = Target("slides a minute at concurrency 8, over the best local way", 0.95, 1.0)
CACHED_P99_MS = Target("cached prediction, p99, ms", 50.0, 20.0, at_most=True)
HEALTH_P99_MS = Target("health check under full load, p99, ms", 50.0, 20.0, at_most=True)
LOOP_LAG_P99_MS = Target("event loop's lag under full load, p99, ms", 20.0, 10.0, at_most=True)


def verdict_rows(targets: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Judged targets as cells of a table: what, measured, must, aim, verdict."""
    shown = {"aim": "aim reached", "must": "must reached", "missed": "MISSED"}
    return [
        [
            target["what"],
            *(f"{target[name]:.3g}" for name in ("value", "must", "aim")),
            shown[target["verdict"]],
        ]
        for target in targets
    ]


TARGET_HEADER = ("target", "measured", "must", "aim", "")

__all__ = [
    "AGAINST_BEST",
    "AGAINST_BEST_FP32",
    "AGAINST_RECIPE",
    "AGGREGATOR_4000",
    "AGGREGATOR_64000",
    "CACHED_P99_MS",
    "ENCODER_DEFAULT",
    "ENCODER_INT8",
    "GROWTH",
    "HEALTH_P99_MS",
    "LOOP_LAG_P99_MS",
    "PEAK_MEMORY_MB",
    "READY_S",
    "SCALES_IN_ONE_PASS",
    "SERVED_PER_MINUTE",
    "SERVED_SLIDE",
    "SHARE_OF_FLOOR",
    "TARGET_HEADER",
    "Target",
    "verdict_rows",
]
