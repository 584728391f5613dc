"""A wall clock that jumps moves no deadline and loses nothing; in the long run only."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from cmamil_sdk.serving.config import ServerConfig

from .programs import start_program
from .results import record
from .soak.keeping import job, upload
from .soak.known import ENGINE, predicted
from .soak.ledger import counted, idle
from .soak.predicting import good, hurried, uncached
from .soak.slides import write_copies, write_slides
from .soak.traffic import Traffic

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SECONDS = 15.0
LATE_S = 1.0
# Two hours ahead and two behind, by turns, each for a second; for this package alone: gRPC takes the time
# that a call has left from the wall clock, when the call begins.
JUMPS = (
    "import sys, time, types, grpc.aio; fake = types.ModuleType('time'); vars(fake).update(vars(time)); "
    "fake.time_ns = lambda: time.time_ns() + 7200 * 10**9 * (1 - 2 * (time.time_ns() // 10**9 % 2)); "
    "fake.time = lambda: fake.time_ns() / 1e9; sys.modules['time'] = fake"
)


def test_the_clock_of_deadlines(config: ServerConfig, tmp_path: Path) -> None:
    root, folder = tmp_path / "slides", tmp_path / "copies"
    root.mkdir()
    folder.mkdir()
    slides = write_slides(root, 6)
    settings = {
        **{"slides_roots": (root,), "engine": ENGINE, "max_queued": 100},
        **{"jobs_file": tmp_path / "jobs.sqlite", "uploads": tmp_path / "uploads"},
        "max_calls_per_client": 200,
    }
    known = predicted(config.bundles[0], root, slides)
    copies = write_copies(root, slides[:2], folder, 4)
    program, port = start_program(config.model_copy(update=settings), first=JUMPS)
    traffic = Traffic(f"127.0.0.1:{port}", known)

    async def scenario() -> list[str]:
        mixture = {good: 2, uncached: 2, hurried: 4, job: 1, upload: 1}
        async with traffic.connect() as client:
            before, until_s = await counted(client), time.monotonic() + SECONDS
            await traffic.drive(mixture, copies, lambda: time.monotonic() < until_s)
            assert await idle(client), "requests are stuck"
            await asyncio.sleep(1.0)
            assert [each.name async for each in client.jobs()] == []
            return traffic.ledger.differences(await counted(client) - before)

    try:
        differences = asyncio.run(scenario())
    finally:
        program.terminate()
    assert program.wait(timeout=30) == 0
    outcomes = traffic.outcomes
    record(
        "the wall clock jumps four hours, each second",
        f"{outcomes.total()} requests in {SECONDS:.0f} s, {outcomes['out of time']} of them out of time: "
        f"{traffic.latest_s:.2f} s beyond their deadline at most",
        f"all end as they may; {LATE_S:g} s",
    )
    assert not differences
    assert outcomes["answered"] and outcomes["out of time"] and outcomes["job"]
    assert traffic.latest_s < LATE_S
