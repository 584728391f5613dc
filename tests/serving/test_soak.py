"""A server under everything at once, for a while: nothing lost, nothing doubled, nothing kept.

``make soak`` runs the long forms and writes what they find into docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest

from cmamil_sdk.benchmarks.loop_lag import LagProbe, free_port
from cmamil_sdk.client import AsyncClient
from cmamil_sdk.serving.config import ServerConfig

from .administering import ADMIN, CLINIC, write_tokens, write_version
from .programs import start_program
from .results import record
from .soak.known import ENGINE, OTHER_LABELS, Known, predicted
from .soak.ledger import counted, idle
from .soak.mixture import EVERYTHING
from .soak.predicting import cancelled_soon, uncached
from .soak.slides import write_copies, write_slides
from .soak.swapping import swap
from .soak.traffic import Client, Traffic
from .soak.watching import Watch

CLIENTS = 8
GRACE_S = 1.0
QUARANTINE_S = 2.0  # two kills may hit the same batch by chance
MAX_SLOPE_MIB_PER_MIN = 1.0
MAX_GROWTH_MIB = 100
MAX_NEW_FILES = 4
MAX_NEW_THREADS = 10  # the server's pools of threads fill as they are needed, and stay so
WARM_SWAPS_S, SWAPS_S = 10.0, 40.0
CACHE_BYTES = 2**20  # of about 14 slides: others have to go
LOOP_LAG_P99_S = 0.02
LONG = pytest.mark.long


@dataclass(frozen=True)
class Soak:
    """How long at least, how many workers are killed, and how late a request may be at its deadline.

    Memory and the event loop are looked at after ``warm_s``, in which pools fill and code is read for the
    first time. Models change places for ``swaps_s``.
    """

    name: str
    seconds: float
    requests: int
    kills: int
    warm_s: float
    swaps_s: float
    grace_s: float = GRACE_S

    @property
    def memory_limit(self) -> str:
        """As the table says it; the event loop is looked at where nothing is killed."""
        if self.kills:
            return f"{MAX_GROWTH_MIB} MiB"
        return f"{MAX_SLOPE_MIB_PER_MIN:g} MiB a minute; {1000 * LOOP_LAG_P99_S:g} ms"


# Other tests may run beside the short one.
SHORT = Soak("soak with kills", 30.0, 50, 10, warm_s=10.0, swaps_s=30.0, grace_s=5.0)
STEADY_S = float(os.environ.get("CMAMIL_SOAK_S", "160"))
STEADY = Soak("soak", 60.0 + STEADY_S, 500, 0, warm_s=60.0, swaps_s=40.0)
KILLS = Soak("`kill -9` of a worker every 2 s", 40.0, 50, 20, warm_s=10.0, swaps_s=40.0)


@dataclass
class Server:
    """One in a process of its own, and what is known of its slides."""

    program: Popen[str]
    address: str
    metrics_port: int
    known: Known
    copies: list[dict[str, Path]]
    folder: Path

    def traffic(self) -> Traffic:
        """As a client of the clinic."""
        return Traffic(self.address, self.known, token=CLINIC)

    def files(self) -> dict[str, list[str]]:
        """What lies in the folders that the server writes to."""
        found = {}
        for name in ("uploads", "cache"):
            paths = (self.folder / name).rglob("*")
            found[name] = sorted(path.name for path in paths if path.is_file())
        return found

    def cached_bytes(self) -> int:
        """Length of all entries."""
        return sum(path.stat().st_size for path in (self.folder / "cache").rglob("*"))


@pytest.fixture(scope="module")
def server(
    config: ServerConfig, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("soak")
    root, copies = folder / "slides", folder / "copies"
    for made in (root, copies):
        made.mkdir()
    slides = write_slides(root, 12)
    bundle = write_version(tiny_bundle, folder / "roots", "1")
    write_version(tiny_bundle, folder / "roots", "2", labels=OTHER_LABELS)
    metrics_port = free_port()
    settings = {
        **{"bundles": (bundle,), "bundle_roots": (folder / "roots",), "slides_roots": (root,)},
        **{"tokens": write_tokens(folder), "engine": ENGINE, "metrics_port": metrics_port},
        **{"max_queued": 100, "max_calls_per_client": 200, "quarantine_s": QUARANTINE_S},
        **{"jobs_file": folder / "jobs.sqlite", "uploads": folder / "uploads"},
        **{"cache": folder / "cache", "cache_max_bytes": CACHE_BYTES},
    }
    program, port = start_program(config.model_copy(update=settings))
    made = Server(
        program,
        f"127.0.0.1:{port}",
        metrics_port,
        predicted(bundle, root, slides),
        write_copies(root, slides[:2], copies, CLIENTS),
        folder,
    )

    async def learn() -> None:
        async with made.traffic().connect() as client:
            await made.known.ask(client, slides[:3])

    asyncio.run(learn())
    yield made
    program.terminate()
    assert program.wait(timeout=30) == 0


@pytest.mark.parametrize(
    "soak",
    [SHORT, pytest.param(STEADY, marks=LONG), pytest.param(KILLS, marks=LONG)],
    ids=lambda soak: soak.name,
)
@pytest.mark.timeout(600)
def test_soak(server: Server, soak: Soak) -> None:
    traffic, watch = server.traffic(), Watch(server.program.pid, soak.kills)
    lag = LagProbe(server.metrics_port, CLINIC)
    began_s = time.monotonic()

    async def scenario(client: AsyncClient, admin: AsyncClient) -> list[str]:
        before = await counted(client)
        until_s, over = time.monotonic() + soak.seconds, asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(watch.run(client, over))
            group.create_task(swap(traffic, admin, soak.swaps_s, kills=soak.kills > 0))
            group.create_task(_later(soak.warm_s, lag.start))

            def more() -> bool:
                enough = traffic.outcomes.total() >= soak.requests and watch.killed == soak.kills
                return time.monotonic() < until_s or not enough

            await traffic.drive(EVERYTHING, server.copies, more)
            over.set()
        assert await idle(client), "requests are stuck"
        await asyncio.sleep(1.0)
        assert [job.name async for job in client.jobs()] == []
        assert [model.name for model in await client.models()] == ["models/tiny/versions/1"]
        return traffic.ledger.differences(await counted(client) - before)

    async def run() -> list[str]:
        async with traffic.connect() as client, AsyncClient(server.address, token=ADMIN) as admin:
            assert await idle(client)
            return await scenario(client, admin)

    at_first = watch.look()
    differences = asyncio.run(run())
    lag.stop()
    after = watch.look()
    assert [one.processes for one in after] == [one.processes for one in at_first]
    assert [one.shared for one in after] == [one.shared for one in at_first]
    files = after[0].files - at_first[0].files
    threads, worker_files = watch.more(soak.warm_s)
    grown_mib, slopes = watch.grown_mib(), (0.0, 0.0)
    held = f"the server {grown_mib:+.0f} MiB from the first third to the last; {files:+d} files"
    if not soak.kills:  # else the workers are others all the time
        slopes = watch.slopes(soak.warm_s)
        held = (
            f"the server {slopes[0]:+.1f}, its workers {slopes[1]:+.1f} MiB a minute; "
            f"{files:+d} files and {worker_files:+d} of its workers"
        )
    lag_s = lag.percentile_s(99)
    outcomes = traffic.outcomes
    record(
        soak.name,
        f"{outcomes.total()} requests in {time.monotonic() - began_s:.0f} s: "
        + ", ".join(f"{count} {ending}" for ending, count in sorted(outcomes.items()))
        + f"; {watch.killed} kills; {traffic.latest_s:.2f} s beyond a deadline at most; "
        f"{held}, {threads:+d} threads; event loop p99 {1000 * lag_s:.0f} ms late",
        f"all end as they may; {soak.grace_s:g} s; {soak.memory_limit}",
    )
    assert not differences
    assert all(outcomes[kind] for kind in ("answered", "bad slide", "cancelled", "vanished"))
    assert outcomes["crashed"] <= 5 * watch.killed
    assert traffic.latest_s < soak.grace_s
    assert server.files()["uploads"] == [".lock"]
    assert server.cached_bytes() <= CACHE_BYTES
    assert files <= MAX_NEW_FILES and threads <= MAX_NEW_THREADS
    assert soak.kills or worker_files <= MAX_NEW_FILES
    assert grown_mib < MAX_GROWTH_MIB
    if soak is STEADY:
        assert max(slopes) < MAX_SLOPE_MIB_PER_MIN  # of the server, and of its workers
        assert lag_s < LOOP_LAG_P99_S


async def _later(seconds: float, do: Callable[[], None]) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(do)


@LONG
@pytest.mark.timeout(600)
def test_models_that_change_places(server: Server) -> None:
    """Under traffic, one load after another; what is kept when nothing is at work is compared."""
    traffic, watch = server.traffic(), Watch(server.program.pid)

    async def at_rest(client: AsyncClient) -> list[float]:
        assert await idle(client)
        await asyncio.sleep(2.0)
        return [held.memory_mib for held in watch.look()]

    async def scenario() -> tuple[list[float], list[float]]:
        async with traffic.connect() as client, AsyncClient(server.address, token=ADMIN) as admin:
            rests = []
            for seconds in (WARM_SWAPS_S, SWAPS_S):
                swapping = asyncio.create_task(swap(traffic, admin, seconds, every_s=0.1))
                await traffic.drive(EVERYTHING, server.copies, lambda: not swapping.done())  # noqa: B023
                await swapping
                rests.append(await at_rest(client))
            return rests[0], rests[1]

    with LagProbe(server.metrics_port, CLINIC) as lag:
        before, after = asyncio.run(scenario())
    grown = [later - earlier for earlier, later in zip(before, after, strict=True)]
    swaps = traffic.outcomes["swapped"]
    record(
        f"a model's versions change places for {SWAPS_S:.0f} s under traffic",
        f"{swaps} times, with {traffic.outcomes.total() - swaps} requests; at rest the server has "
        f"{grown[0]:+.0f} MiB after them, its workers {grown[1]:+.0f}; event loop p99 "
        f"{1000 * lag.percentile_s(99):.0f} ms late",
        f"no request fails; {MAX_GROWTH_MIB} MiB",
    )
    assert sum(grown) < MAX_GROWTH_MIB


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=LONG)])
@pytest.mark.timeout(600)
def test_random_cancels(server: Server, count: int) -> None:
    """One of ten is not cancelled, and is answered as if it had been alone."""
    traffic, todo = server.traffic(), iter(range(count))

    async def run() -> None:
        async with traffic.connect() as connection:
            client = Client(connection, {})
            for number in todo:
                await (cancelled_soon if number % 10 else uncached)(traffic, client)

    async def scenario() -> tuple[float, list[str]]:
        async with traffic.connect() as client:
            before = await counted(client)
            await asyncio.gather(*(run() for _ in range(12)))
            ended_s = time.monotonic()
            assert await idle(client, within_s=GRACE_S + 4.0), "requests are stuck"
            took_s = time.monotonic() - ended_s
            await asyncio.sleep(1.0)
            return took_s, traffic.ledger.differences(await counted(client) - before)

    idle_after_s, differences = asyncio.run(scenario())
    outcomes = traffic.outcomes
    record(
        f"{count} requests, nine of ten cancelled at random",
        f"{outcomes['cancelled']} cancelled, {outcomes['answered']} answered, all right to the last "
        f"bit; nothing at work {idle_after_s:.1f} s after the last",
        "none stuck",
    )
    assert not differences
    assert outcomes.total() == count
    assert outcomes["answered"] >= count // 10 and outcomes["cancelled"] >= count // 10
