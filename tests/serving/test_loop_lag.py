"""The lag of the event loop: what is sampled, and how it is read from the page of metrics."""

from __future__ import annotations

import asyncio
import math
import time
from itertools import pairwise

import pytest

from cmamil_sdk.benchmarks.loop_lag import LagProbe
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.loop_lag import EVERY_S, LoopLag

from .listening import listening_server

BLOCKED_S = 0.3


def test_every_moment_of_a_held_up_loop_is_a_sample() -> None:
    seen: list[float] = []

    async def scenario() -> int:
        lag = LoopLag(seen.append)
        lag.start()
        await asyncio.sleep(2.5 * EVERY_S)
        time.sleep(BLOCKED_S)
        await asyncio.sleep(EVERY_S / 4)
        lag.stop()
        taken = len(seen)
        await asyncio.sleep(2 * EVERY_S)
        return taken

    taken = asyncio.run(scenario())
    assert len(seen) == taken, "it went on after its end"
    longest = seen.index(max(seen))
    assert seen[longest] > BLOCKED_S - EVERY_S
    after = seen[longest : longest + int(BLOCKED_S / EVERY_S)]
    assert all(a - b == pytest.approx(EVERY_S) for a, b in pairwise(after))


def test_it_is_read_from_the_page_of_metrics(config: ServerConfig) -> None:
    with listening_server(config.model_copy(update={"metrics_port": 0})) as server:
        port = server._observation.metrics_port
        assert port is not None
        with LagProbe(port) as probe:
            for _ in range(1000):
                server._services.metrics.count_lag(0.0125)
        assert probe.n >= 1000
        assert 0.01 <= probe.percentile_s(50) <= 0.015


def test_percentiles_lie_within_their_bucket() -> None:
    probe = LagProbe(0)
    probe.n = 100
    probe._counts = {0.01: 50, 0.02: 100, 0.05: 100, math.inf: 100}
    assert probe.percentile_s(25) == pytest.approx(0.005)
    assert probe.percentile_s(99) == pytest.approx(0.0198)
    probe._counts = {0.01: 90, 0.02: 90, math.inf: 100}
    assert probe.percentile_s(99) == 0.02, "beyond the last bound"
