"""Tiles per second and time left over a whole run."""

from __future__ import annotations

import pytest

from cmamil_sdk.cli.run_meter import RunMeter, duration


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_claimed_before_the_first_tile(clock: Clock) -> None:
    meter = RunMeter(3, clock=clock)
    meter.begin()
    clock.now = 5
    assert (meter.tiles_per_s, meter.seconds_left) == (None, None)
    assert meter.text() == "1 of 3"
    meter.advance(0, 100)
    assert meter.text() == "1 of 3"


def test_slides_to_come_are_taken_for_average_ones(clock: Clock) -> None:
    meter = RunMeter(4, clock=clock)
    meter.begin()
    clock.now = 10
    meter.advance(100, 100)
    meter.end()
    meter.begin()
    assert meter.seconds_left == pytest.approx(3 * 100 / 10)
    clock.now = 20
    meter.advance(100, 300)
    assert meter.tiles_per_s == pytest.approx(10)
    assert meter.seconds_left == pytest.approx((200 + 2 * 200) / 10)
    assert meter.text() == "2 of 4, 10 tiles/s, about 60 s left"


def test_kept_and_failed_slides_tell_nothing_of_the_others(clock: Clock) -> None:
    meter = RunMeter(5, clock=clock)
    for _ in range(3):
        meter.begin()
        clock.now += 1000
        meter.end()
    meter.begin()
    clock.now += 10
    meter.advance(50, 100)
    assert meter.tiles_per_s == pytest.approx(5)
    assert meter.seconds_left == pytest.approx((50 + 100) / 5)


def test_other_processes_share_what_is_left(clock: Clock) -> None:
    meter = RunMeter(12, clock=clock)
    meter.elsewhere()
    meter.begin()
    clock.now = 10
    meter.advance(100, 100)
    assert meter.seconds_left == pytest.approx(10 * 100 / 10 / 2)
    assert meter.text().startswith("2 of 12, ")


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    meter = RunMeter(1, clock=clock)
    meter.begin()
    clock.now = 1
    meter.advance(7, 7)
    meter.end()
    assert meter.seconds_left == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (90000, "25.0 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
