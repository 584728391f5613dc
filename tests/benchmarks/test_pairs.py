from __future__ import annotations

import pytest

from cmamil_sdk.benchmarks.pairs import Pairs, spread, time_in_turns


def test_the_ratio_is_the_median_of_the_pairs_not_the_ratio_of_medians() -> None:
    """The machine is ten times as slow in two pairs; the ratio within them stays."""
    pairs = Pairs(baseline_s=(2.0, 20.0, 4.0, 40.0, 2.0), ours_s=(1.0, 10.0, 2.0, 20.0, 1.0))
    assert pairs.ratios == [2.0] * 5
    assert pairs.ratio() == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_and_is_one_of_the_ratios_at_each_end() -> None:
    pairs = Pairs(baseline_s=(1.0, 2.0, 3.0, 4.0, 5.0), ours_s=(1.0,) * 5)
    ratio, low, high = pairs.ratio()
    assert (ratio, low, high) == (3.0, 1.0, 5.0)
    assert pairs.ratio() == (ratio, low, high), "drawn from one seed"


@pytest.mark.parametrize(("number", "order"), [(0, "bo"), (1, "ob"), (2, "bo"), (-1, "ob")])
def test_who_goes_first_alternates(number: int, order: str) -> None:
    calls: list[str] = []
    times = time_in_turns(number, lambda: calls.append("b"), lambda: calls.append("o"))
    assert "".join(calls) == order
    assert min(times) >= 0


def test_the_clock_can_be_chosen() -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.0])
    times = time_in_turns(0, lambda: None, lambda: None, clock=lambda: next(ticks))
    assert times == (1.0, 2.0)


def test_spread() -> None:
    assert spread([1.0] * 11) == 1.0
    assert spread([float(n) for n in range(1, 12)]) == pytest.approx(10.0 / 2.0)
