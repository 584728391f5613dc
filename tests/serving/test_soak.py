"""A server under everything at once, for a while: nothing lost, nothing doubled, nothing kept.

``make soak`` runs the long forms and writes what they find into docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from subprocess import Popen

import numpy as np
import pytest

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.serving.config import ServerConfig

from .programs import Held, children, held_by, start_program
from .results import record
from .traffic import Traffic, counted, idle, write_slides

CLIENTS = 8
KILL_EVERY_S = 2.0
GRACE_S = 1.0
QUARANTINE_S = 2.0  # two kills may hit the same batch by chance
MAX_GROWTH_MIB = 100
MAX_SLOPE_MIB_PER_MIN = 10
MAX_NEW_THREADS = 10  # the server's pools of threads fill as they are needed, and stay so
LONG = pytest.mark.long


@dataclass(frozen=True)
class Soak:
    """How long at least, how many workers are killed, and how late a request may be at its deadline."""

    name: str
    seconds: float
    requests: int
    kills: int
    grace_s: float = GRACE_S


SHORT = Soak("soak with kills", 30.0, 50, 10, grace_s=5.0)  # other tests may run beside it
STEADY = Soak("soak", float(os.environ.get("CMAMIL_SOAK_S", "120")), 500, 0)
KILLS = Soak("`kill -9` of a worker every 2 s", 40.0, 50, 20)


@dataclass
class Server:
    """One in a process of its own."""

    program: Popen[str]
    address: str
    slides: list[str]


@pytest.fixture(scope="module")
def server(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("soak")
    slides = write_slides(root, 12)
    settings = {"slides_roots": (root,), "max_queued": 100, "max_calls_per_client": 200}
    program, port = start_program(
        config.model_copy(update={**settings, "quarantine_s": QUARANTINE_S})
    )
    yield Server(program, f"127.0.0.1:{port}", slides)
    program.terminate()
    assert program.wait(timeout=30) == 0


@dataclass
class Watch:
    """Looks at the server every second, and kills one of its workers now and then.

    None is killed while another starts: on a busy machine none would ever be ready.
    """

    server: Server
    kills: int
    every_s: float
    killed: int = 0
    samples: list[Held] = field(default_factory=list)

    async def run(self, over: asyncio.Event) -> None:
        """Until the event is set."""
        pid, rng, due_s = self.server.program.pid, random.Random(0), time.monotonic()
        async with AsyncClient(self.server.address) as client:
            while not over.is_set():
                await asyncio.sleep(1.0)
                self.samples.append(held_by(pid))
                if self.killed == self.kills or time.monotonic() < due_s + self.every_s:
                    continue
                states = [worker.state for worker in (await client.server_info()).workers]
                if "starting" not in states:
                    os.kill(rng.choice(children(pid)), signal.SIGKILL)
                    self.killed += 1
                    due_s = time.monotonic()

    def warm(self) -> tuple[list[Held], list[Held]]:
        """What was seen in the first third, in which pools fill, and later."""
        third = len(self.samples) // 3
        return self.samples[:third], self.samples[third:]

    def growth(self) -> tuple[float, float]:
        """MiB that were added after the first third, and MiB per minute (least squares)."""
        memory = [held.memory_mib for held in self.warm()[1]]
        slope = np.polyfit(np.arange(len(memory)) / 60.0, memory, 1)[0]
        return memory[-1] - memory[0], float(slope)


@pytest.mark.parametrize(
    "soak",
    [SHORT, pytest.param(STEADY, marks=LONG), pytest.param(KILLS, marks=LONG)],
    ids=lambda soak: soak.name,
)
@pytest.mark.timeout(600)
def test_soak(server: Server, soak: Soak) -> None:
    traffic = Traffic(server.address, server.slides)
    watch = Watch(server, soak.kills, KILL_EVERY_S)

    began_s = time.monotonic()

    async def scenario() -> tuple[Held, Held, Counter[str]]:
        await traffic.learn()
        assert await idle(server.address)
        before, counts = held_by(server.program.pid), await counted(server.address)
        until_s, over = time.monotonic() + soak.seconds, asyncio.Event()
        watching = asyncio.create_task(watch.run(over))

        def more() -> bool:
            enough = traffic.outcomes.total() >= soak.requests and watch.killed == soak.kills
            return time.monotonic() < until_s or not enough

        await traffic.drive(CLIENTS, more)
        over.set()
        await watching
        assert await idle(server.address), "requests are stuck"
        await asyncio.sleep(1.0)
        return before, held_by(server.program.pid), await counted(server.address) - counts

    before, after, server_counts = asyncio.run(scenario())
    outcomes, (grown_mib, slope) = traffic.outcomes, watch.growth()
    threads = [max(held.threads for held in part) for part in watch.warm()]
    record(
        soak.name,
        f"{outcomes.total()} requests in {time.monotonic() - began_s:.0f} s: "
        + ", ".join(f"{count} {ending}" for ending, count in sorted(outcomes.items()))
        + f"; {watch.killed} kills; {traffic.latest_s:.2f} s beyond a deadline at most; "
        f"{slope:+.1f} MiB a minute, {after.files - before.files:+d} files, "
        f"{threads[1] - threads[0]:+d} threads",
        f"all end as they may; {soak.grace_s:g} s; {MAX_SLOPE_MIB_PER_MIN} MiB a minute",
    )
    given_up = outcomes["cancelled"] + outcomes["vanished"] + outcomes["out of time"]
    assert outcomes["answered"] <= server_counts["OK"] <= outcomes["answered"] + given_up
    assert server_counts.total() <= outcomes.total()
    assert not server_counts["UNKNOWN"]
    assert all(outcomes[kind] for kind in ("answered", "bad slide", "cancelled", "vanished"))
    assert outcomes["crashed"] <= 5 * watch.killed
    assert traffic.latest_s < soak.grace_s
    assert grown_mib < MAX_GROWTH_MIB
    if soak is STEADY:
        assert slope < MAX_SLOPE_MIB_PER_MIN
    assert after.files <= before.files + 4 and threads[1] <= threads[0] + MAX_NEW_THREADS


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=LONG)])
@pytest.mark.timeout(600)
def test_random_cancels(server: Server, count: int) -> None:
    """One of ten is not cancelled, and is answered as if it had been alone."""
    traffic, todo = Traffic(server.address, server.slides), iter(range(count))

    async def client() -> None:
        async with AsyncClient(server.address, timeout_s=120.0) as connected:
            for number in todo:
                if number % 10:
                    await traffic.cancelled(connected, traffic.rng.uniform(0.0, 0.15))
                else:
                    await traffic.good(connected)

    async def scenario() -> float:
        await traffic.learn()
        await asyncio.gather(*(client() for _ in range(12)))
        ended_s = time.monotonic()
        assert await idle(server.address, within_s=GRACE_S + 4.0), "requests are stuck"
        return time.monotonic() - ended_s

    idle_after_s = asyncio.run(scenario())
    outcomes = traffic.outcomes
    record(
        f"{count} requests, nine of ten cancelled at random",
        f"{outcomes['cancelled']} cancelled, {outcomes['answered']} answered, all right to the last "
        f"bit; nothing at work {idle_after_s:.1f} s after the last",
        "none stuck",
    )
    assert outcomes.total() == count
    assert outcomes["answered"] >= count // 10 and outcomes["cancelled"] >= count // 10
