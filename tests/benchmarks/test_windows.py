"""Statistics against values worked out by hand, and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.benchmarks.windows import (
    Window,
    median_tiles_per_s,
    percentile,
    percentiles,
    stability,
)

SECONDS = st.floats(1e-6, 1e4, allow_nan=False)


def window(latency_s: float = 1.0, *, n: int = 20, tiles: int = 10, slow: int = 0) -> Window:
    latencies = [latency_s] * (n - slow) + [3 * latency_s] * slow
    return Window(tuple(latencies), wall_s=sum(latencies), cpu_s=1.0, tiles=tiles * n)


def test_percentiles_of_one_to_hundred() -> None:
    values = list(range(100, 0, -1))
    assert percentiles(values) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99}


def test_percentile_by_hand() -> None:
    # 20 values: rank ceil(0.95 * 20) = 19, so one value lies above.
    assert percentile([*range(1, 20), 1000], 95) == 19
    assert percentile([5.0, 1.0, 3.0], 50) == 3.0
    # rank ceil(0.9 * 11) = 10
    assert percentile(list(range(11)), 90) == 9


@pytest.mark.parametrize(("percent", "fewest"), [(50, 2), (90, 10), (95, 20), (99, 100)])
def test_no_percentile_from_too_few_values(percent: int, fewest: int) -> None:
    assert percentile([1.0] * (fewest - 1), percent) is None
    assert percentile([1.0] * fewest, percent) == 1.0


@given(st.lists(SECONDS, min_size=100, max_size=300), st.sampled_from([50, 90, 95, 99]))
def test_percentile_is_numpys_inverted_cdf(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == np.percentile(values, percent, method="inverted_cdf")


@given(st.lists(SECONDS, min_size=2, max_size=200))
def test_percentiles_are_values_in_order(values: list[float]) -> None:
    known = [value for value in percentiles(values).values() if value is not None]
    assert known == sorted(known)
    assert set(known) <= set(values)
    assert known[0] >= min(values)
    assert known[-1] <= max(values)


def test_equal_windows_are_stable() -> None:
    found = stability([window(), window(), window()])
    assert found.verdict == "stable"
    assert found.throughput_spread == 1.0
    assert found.p95_spread == 1.0


def test_spreads_by_hand_at_and_over_the_limit() -> None:
    at_limit = stability([window(1.0), window(1.05), window(1.1)])
    assert at_limit.throughput_spread == pytest.approx(1.1)
    over = stability([window(1.0), window(1.05), window(1.11)])
    assert over.throughput_spread == pytest.approx(1.11)
    assert over.verdict == "unstable"
    assert stability([window(1.0), window(1.05), window(1.09)]).verdict == "stable"


def test_a_slow_tail_alone_makes_windows_unstable() -> None:
    # 2 of 21 slow: p95 (rank 20) is slow, while throughput differs by less than 1.10 with 60 fast.
    calm = Window((1.0,) * 20, wall_s=20.0, cpu_s=1.0, tiles=200)
    tail = Window((1.0,) * 18 + (1.2,) * 2, wall_s=20.4, cpu_s=1.0, tiles=200)
    found = stability([calm, tail, calm])
    assert found.throughput_spread == pytest.approx(1.02)
    assert found.p95_spread == pytest.approx(1.2)
    assert found.verdict == "unstable"


def test_few_samples_are_never_called_stable() -> None:
    found = stability([window(n=19), window(n=20), window(n=20)])
    assert (found.verdict, found.p95_spread) == ("too few samples", None)
    assert stability([window(1.0, n=5), window(1.2, n=5)]).verdict == "unstable"


def test_median_throughput() -> None:
    windows = [Window((1.0,), wall_s=1.0, cpu_s=1.0, tiles=tiles) for tiles in (10, 30, 20)]
    assert median_tiles_per_s(windows) == 20


@given(st.lists(st.tuples(SECONDS, st.integers(1, 30)), min_size=3, max_size=6), SECONDS)
def test_stability_does_not_depend_on_the_unit_or_order(
    drawn: list[tuple[float, int]], factor: float
) -> None:
    windows = [window(latency, n=n) for latency, n in drawn]
    scaled = [window(latency * factor, n=n) for latency, n in reversed(drawn)]
    found, other = stability(windows), stability(scaled)
    assert found.throughput_spread >= 1.0
    assert other.throughput_spread == pytest.approx(found.throughput_spread, rel=1e-9)
