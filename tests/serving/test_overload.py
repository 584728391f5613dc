"""More requests than a server can do, and an end in the middle of work: measured, in the long run only.

The short forms are in ``test_faults.py``, ``test_server.py`` and ``test_soak.py``.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.benchmarks.loop_lag import LagProbe, free_port
from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import QueueFull, ServerDraining, ServerUnreachable
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.synthetic.svs import write_svs

from .programs import children, running, start_program
from .results import percentile, record
from .soak.known import ENGINE, predicted
from .soak.ledger import idle
from .soak.slides import write_slides

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

QUEUED = 8
SECONDS = 20.0
REFUSED_WITHIN_S = 0.05
STOPPED_WITHIN_S = 0.5
GOODPUT = 0.9
HEALTH_P99_S = 0.05
LOOP_LAG_P99_S = 0.02


@contextmanager
def running_program(config: ServerConfig, **settings: Any) -> Iterator[tuple[Any, str]]:
    program, port = start_program(config.model_copy(update=settings))
    try:
        yield program, f"127.0.0.1:{port}"
    finally:
        program.kill()
        program.wait()


@dataclass
class Overload:
    """What came of requests that did not wait for each other."""

    address: str
    slides: list[str]
    answered: int = 0
    refused_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    most_queued: int = 0

    async def ask(self, client: AsyncClient, number: int) -> None:
        """One request, of which only the answer or the refusal counts."""
        started_s = time.monotonic()
        slide = self.slides[number % len(self.slides)]
        try:
            await client.predict(slide, bypass_cache=True)
        except QueueFull:
            self.refused_s.append(time.monotonic() - started_s)
        else:
            self.answered += 1

    async def watch(self, over: asyncio.Event) -> None:
        """Look at the queue and at health, again and again."""
        async with AsyncClient(self.address) as client:
            while not over.is_set():
                started_s = time.monotonic()
                await client.health()
                self.health_s.append(time.monotonic() - started_s)
                self.most_queued = max(self.most_queued, (await client.server_info()).queued_slides)
                await asyncio.sleep(0.05)


async def capacity_per_s(address: str, slides: list[str]) -> float:
    """Answers a second with as many clients as places at work; each slide is read for each answer."""
    done, until_s = 0, time.monotonic() + SECONDS
    turns = itertools.cycle(slides)

    async def client() -> None:
        nonlocal done
        async with AsyncClient(address, timeout_s=120.0) as connected:
            while time.monotonic() < until_s:
                await connected.predict(next(turns), bypass_cache=True)
                done += 1

    started_s = time.monotonic()
    await asyncio.gather(*(client() for _ in range(4)))
    return done / (time.monotonic() - started_s)


def test_four_times_the_capacity(config: ServerConfig, tmp_path: Path) -> None:
    slides = write_slides(tmp_path, 12)

    async def scenario(address: str) -> tuple[Overload, float, float]:
        before = await capacity_per_s(address, slides)
        load, over, calls = Overload(address, slides), asyncio.Event(), []
        watching = asyncio.create_task(load.watch(over))
        async with AsyncClient(address, timeout_s=120.0) as client:
            started_s = time.monotonic()
            for number in range(round(4 * before * SECONDS)):
                due_s = started_s + number / (4 * before)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                calls.append(asyncio.create_task(load.ask(client, number)))
            await asyncio.gather(*calls)
            goodput = load.answered / (time.monotonic() - started_s)
            over.set()
            await watching
            assert await idle(client)
        # A machine whose speed drifts is measured on both sides.
        return load, goodput, statistics.mean([before, await capacity_per_s(address, slides)])

    metrics_port = free_port()
    settings = {
        **{"slides_roots": (tmp_path,), "max_queued": QUEUED, "max_calls_per_client": 4096},
        "metrics_port": metrics_port,
    }
    with running_program(config, **settings) as (_, address), LagProbe(metrics_port) as lag:
        load, goodput, capacity = asyncio.run(scenario(address))
    refused_p99_s = percentile(load.refused_s, 99)
    health_p99_s = percentile(load.health_s, 99)
    lag_p99_s = lag.percentile_s(99)
    record(
        f"overload: four times the capacity for {SECONDS:.0f} s",
        f"{load.answered} answered, {len(load.refused_s)} refused, p99 of a refusal "
        f"{1000 * refused_p99_s:.0f} ms; {goodput / capacity:.0%} of the capacity; {load.most_queued} "
        f"of {QUEUED} places in the queue; health p99 {1000 * health_p99_s:.0f} ms, event loop "
        f"p99 {1000 * lag_p99_s:.0f} ms late",
        "refusal and health 50 ms; 90 %; queue bounded; 20 ms",
    )
    assert load.most_queued <= QUEUED
    assert refused_p99_s < REFUSED_WITHIN_S
    assert goodput >= GOODPUT * capacity
    assert health_p99_s < HEALTH_P99_S
    assert lag_p99_s < LOOP_LAG_P99_S


def test_an_end_in_the_middle_of_work(config: ServerConfig, tmp_path: Path) -> None:
    slides = write_slides(tmp_path, 12)
    grace_s = 30.0

    async def scenario(program: Any, address: str) -> tuple[int, int, float]:
        accepted, late = 0, 0

        async def client() -> None:
            """Asks until it is sent away; what was accepted must be answered."""
            nonlocal late, accepted
            async with AsyncClient(address, timeout_s=60.0) as connected:
                while True:
                    begun: list[object] = []
                    slide = slides[accepted % len(slides)]
                    try:
                        found = await connected.predict(slide, on_progress=begun.append)
                    except (ServerDraining, ServerUnreachable):
                        assert not begun, "an accepted request was dropped"
                        late += 1
                        return
                    known.check(slide, found)
                    accepted += 1

        clients = [asyncio.create_task(client()) for _ in range(12)]
        await asyncio.sleep(2.0)
        program.send_signal(signal.SIGTERM)
        stopped_s = time.monotonic()
        await asyncio.gather(*clients)
        await asyncio.to_thread(program.wait, grace_s + 5.0)
        return accepted, late, time.monotonic() - stopped_s

    known = predicted(config.bundles[0], tmp_path, slides)
    settings = {"slides_roots": (tmp_path,), "grace_s": grace_s, "engine": ENGINE}
    with running_program(config, **settings) as (program, address):
        workers = children(program.pid)
        accepted, late, took_s = asyncio.run(scenario(program, address))
        assert program.returncode == 0 and not any(running(pid) for pid in workers)
    record(
        "SIGTERM with 12 requests in flight",
        f"{accepted} answered in all, {late} clients told to go elsewhere, 0 failed; gone after "
        f"{took_s:.1f} s",
        f"0 failed; grace of {grace_s:.0f} s + 5 s",
    )
    assert took_s < grace_s + 5.0


def test_how_soon_work_stops(config: ServerConfig, tmp_path: Path) -> None:
    """From the cancellation of a call to the last batch of tiles that was still encoded for it."""
    grain = np.random.default_rng(0).normal(0, 18, (900, 900, 1))
    pixels = np.clip(np.array([205, 130, 175]) + np.tile(grain, (6, 6, 1)), 0, 255)
    write_svs(pixels.astype(np.uint8), tmp_path / "big.svs", mpp=0.5, objective_power=20.0)

    async def scenario(address: str) -> list[float]:
        took_s = []
        async with AsyncClient(address, timeout_s=60.0) as client:
            for number in range(100):
                begun = asyncio.Event()
                work = asyncio.create_task(
                    client.predict("big.svs", on_progress=_when_encoding(begun))
                )
                await begun.wait()
                await asyncio.sleep(0.003 * (number % 50))
                work.cancel()
                took_s.append(await _last_change_s(client))
        return took_s

    with running_program(config, slides_roots=(tmp_path,)) as (_, address):
        took_s = asyncio.run(scenario(address))
    p50_s, p99_s = percentile(took_s, 50), percentile(took_s, 99)
    record(
        "100 calls cancelled while tiles are encoded",
        f"the last tiles came p50 {1000 * p50_s:.0f} ms, p99 {1000 * p99_s:.0f} ms later",
        "p99 500 ms",
    )
    assert p99_s < STOPPED_WITHIN_S


def _when_encoding(begun: asyncio.Event) -> Any:
    return lambda event: begun.set() if event.stage == "encode" else None


async def _last_change_s(client: AsyncClient) -> float:
    """Seconds from now to the last time that the server had encoded more, within 0.8 s."""
    started_s = time.monotonic()
    last_s, tiles = 0.0, -1
    while time.monotonic() - started_s < 0.8:
        now = (await client.server_info()).tiles_decoded
        if tiles not in (-1, now):
            last_s = time.monotonic() - started_s
        tiles = now
        await asyncio.sleep(0.01)
    return last_s
