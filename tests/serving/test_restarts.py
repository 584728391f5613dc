"""A server that ends, drained or killed, while everything is at work; in the long run only."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.client import AsyncClient, PredictionJob
from cmamil_sdk.errors import CmamilError, ModelNotReady, ServerDraining, ServerUnreachable
from cmamil_sdk.serving.config import ServerConfig

from .programs import children, running, start_program
from .results import record
from .soak.keeping import send_half
from .soak.known import ENGINE, Known, predicted
from .soak.ledger import idle
from .soak.slides import write_copies, write_slides
from .waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

BIG, JOBS = "big.svs", 3


class Clinic:
    """A server with everything on, which comes back at the same address, and what it must answer."""

    def __init__(self, config: ServerConfig, big_slide: Path, folder: Path) -> None:
        root = folder / "slides"
        root.mkdir()
        shutil.copy(big_slide, root / BIG)
        slides = write_slides(root, 4)
        self.known: Known = predicted(config.bundles[0], root, [BIG, *slides])
        self.copies = write_copies(root, ["0.svs", "1.svs"], folder, 1)[0]
        self.uploads = folder / "uploads"
        settings = {"slides_roots": (root,), "engine": ENGINE, "cache": folder / "cache"}
        settings |= {"uploads": self.uploads, "jobs_file": folder / "jobs.sqlite"}
        self.config = config.model_copy(update=settings)
        self.program: subprocess.Popen[str]
        self.start()

    def start(self) -> None:
        self.program, port = start_program(self.config)
        self.config = self.config.model_copy(update={"port": port})

    def client(self) -> AsyncClient:
        return AsyncClient(f"127.0.0.1:{self.config.port}", timeout_s=120.0)

    async def end(self, how: signal.Signals) -> int:
        """End it, and start it again; returns its exit status."""
        workers = children(self.program.pid)
        self.program.send_signal(how)
        status = await asyncio.to_thread(self.program.wait, 60)
        wait_until(lambda: not any(map(running, workers)))
        await asyncio.to_thread(self.start)
        return status


@pytest.fixture
def clinic(config: ServerConfig, big_slide: Path, tmp_path: Path) -> Iterator[Clinic]:
    made = Clinic(config, big_slide, tmp_path)
    yield made
    made.program.terminate()
    assert made.program.wait(timeout=60) == 0


class AtWork:
    """Jobs, a watcher, a call, a stream of features and an upload, none of which is done yet."""

    def __init__(self, clinic: Clinic, client: AsyncClient) -> None:
        self.clinic, self.client = clinic, client

    async def begin(self, mpp: float) -> None:
        """``mpp`` is another each time, so that nothing is known of the slide."""
        client, options = self.client, {"bypass_cache": True}
        self.jobs = [await client.create_job(BIG, mpp=mpp) for _ in range(JOBS)]
        self.watcher = _started(client.watch_job(self.jobs[-1].name))
        self.call = _started(client.predict(BIG, **options))
        self.features = _started(client.extract_features("2.svs", **options))
        self.upload = _started(send_half(client, self.clinic.copies["1.svs"], cut=False))
        async with asyncio.timeout(30):
            while not (await client.server_info()).active_slides:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)

    async def jobs_ended(self) -> list[PredictionJob]:
        """All of them, as they ended."""
        ended = [await self.client.watch_job(job.name) for job in self.jobs]
        assert (await self.watcher).to_json() == ended[-1].to_json()
        assert [job.state for job in ended] == ["SUCCEEDED"] * JOBS
        assert len({str(job.prediction and job.prediction.probabilities) for job in ended}) == 1
        return ended


def test_one_reading_for_a_job_a_call_and_a_stream(clinic: Clinic) -> None:
    async def scenario(client: AsyncClient) -> None:
        tiles = sum((await client.inspect(BIG)).tiles.values())
        before = (await client.server_info()).tiles_decoded
        job = await client.create_job(BIG)
        found = await client.predict(BIG)
        ended = await client.watch_job(job.name)
        bag, _ = await client.extract_features(BIG)
        clinic.known.check(BIG, found)
        clinic.known.check(BIG, ended.prediction)
        assert sum(bag.counts().values()) == tiles
        assert (await client.server_info()).tiles_decoded - before == tiles

        stream = _started(client.extract_features(BIG, bypass_cache=True))
        await asyncio.sleep(0.4)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        assert await idle(client, within_s=2.0)

    _run(clinic, scenario)


def test_a_drain_with_everything_at_work(clinic: Clinic) -> None:
    async def scenario(client: AsyncClient) -> None:
        stored = await client.upload_slide(clinic.copies["0.svs"])
        work = AtWork(clinic, client)
        await work.begin(0.49)
        assert await clinic.end(signal.SIGTERM) == 0
        clinic.known.check(BIG, await work.call)
        bag, _ = await work.features
        assert bag.counts()
        with pytest.raises((ServerDraining, ServerUnreachable)):
            await work.upload
        await work.jobs_ended()
        clinic.known.check("0.svs", await client.predict(stored.uri))

    _run(clinic, scenario)
    assert not list(clinic.uploads.glob("*.part"))
    record(
        "SIGTERM with jobs, a watcher, a call, a stream of features and an upload at work",
        f"call and features right, the upload refused, {JOBS} jobs ended right after the restart",
        "nothing lost",
    )


def test_a_kill_with_everything_at_work(clinic: Clinic) -> None:
    async def scenario(client: AsyncClient) -> None:
        stored = await client.upload_slide(clinic.copies["0.svs"])
        cached = await client.predict("3.svs")
        work = AtWork(clinic, client)
        await work.begin(0.48)
        assert await clinic.end(signal.SIGKILL) == -signal.SIGKILL
        for call in (work.call, work.features, work.upload):
            await _cut_off(call)
        await work.jobs_ended()
        clinic.known.check("0.svs", await client.predict(stored.uri))
        again = await client.predict("3.svs")
        assert (cached.feature_source, again.feature_source) == ("computed", "cached")
        clinic.known.check("3.svs", again)

    _run(clinic, scenario)
    assert not list(clinic.uploads.glob("*.part"))
    record(
        "`kill -9` of the server with the same at work",
        f"{JOBS} jobs ended right after the restart, an upload and the cache were whole",
        "nothing lost",
    )


async def _cut_off(call: asyncio.Task[Any]) -> None:
    """A call of a server that was killed fails, or is made again on the next one, if that is ready."""
    try:
        await call
    except CmamilError as problem:
        assert isinstance(problem, (ServerUnreachable, ModelNotReady)), problem


def _started(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


def _run(clinic: Clinic, scenario: Any) -> None:
    async def run() -> None:
        async with clinic.client() as client:
            await scenario(client)

    asyncio.run(run())
