"""The fair queue, with workers that only write down what they are given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.serving.messages import Failed, WorkerSetup, frame, parse_reply
from cmamil_sdk.serving.pool import Job, WorkerPool, WorkerState


class Recorder:
    """Stands for a worker: notes its task and answers with it when told to."""

    def __init__(self, pool: WorkerPool, order: list[Any]) -> None:
        self.state = WorkerState.IDLE
        self._pool, self._order = pool, order
        self._item: Any = None

    def assign(self, _job: Job, item: Any) -> None:
        self.state, self._item = WorkerState.BUSY, item
        self._order.append(item.task)

    def finish(self) -> None:
        self.state = WorkerState.IDLE
        self._item.results.put_nowait(self._item.task)
        self._pool.dispatch()


def recording_pool(order: list[Any]) -> tuple[WorkerPool, Recorder]:
    setup = WorkerSetup(0, (), "auto", 0, 1, 1, 1, 1, 1)
    pool = WorkerPool(setup, workers=0, task_timeout_s=1.0)
    recorder = Recorder(pool, order)
    pool.slots = [recorder]  # type: ignore[list-item]
    return pool, recorder


async def collect(job: Job, tasks: list[Any]) -> list[Any]:
    return [reply async for reply in job.run_all(tasks)]


def test_jobs_take_turns() -> None:
    async def scenario() -> list[Any]:
        order: list[Any] = []
        pool, recorder = recording_pool(order)
        with pool.job() as big, pool.job() as small:
            first = asyncio.create_task(collect(big, [f"big {n}" for n in range(50)]))
            await asyncio.sleep(0)
            second = asyncio.create_task(collect(small, ["small 0", "small 1", "small 2"]))
            await asyncio.sleep(0)
            for _ in range(7):
                recorder.finish()
            assert await second == ["small 0", "small 1", "small 2"]
            first.cancel()
        return order

    order = asyncio.run(scenario())
    assert order[:7] == ["big 0", "big 1", "small 0", "big 2", "small 1", "big 3", "small 2"]


def test_a_closed_job_gives_its_workers_back_at_once() -> None:
    async def scenario() -> list[Any]:
        order: list[Any] = []
        pool, recorder = recording_pool(order)
        with pool.job() as other:
            with pool.job() as dropped:
                work = asyncio.create_task(collect(dropped, ["a", "b", "c"]))
                await asyncio.sleep(0)
                work.cancel()
            waiting = asyncio.create_task(collect(other, ["x"]))
            await asyncio.sleep(0)
            recorder.finish()
            recorder.finish()
            assert await waiting == ["x"]
        return order

    assert asyncio.run(scenario()) == ["a", "x"]


def test_an_error_of_a_task_is_raised_as_its_leaf() -> None:
    async def scenario() -> None:
        order: list[Any] = []
        pool, recorder = recording_pool(order)
        with pool.job() as job:
            work = asyncio.create_task(job.run("task"))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            recorder._item.results.put_nowait(SlideCorrupt("broken"))
            with pytest.raises(SlideCorrupt):
                await work

    asyncio.run(scenario())


def test_only_the_classes_of_the_protocol_are_unpickled() -> None:
    assert parse_reply(frame(Failed("R", "m"))[4:]) == Failed("R", "m")
    for stranger in (asyncio.run, print, EncodedBatch.__init__, WorkerPool):
        with pytest.raises(Exception, match="a child process sent"):
            parse_reply(frame(stranger)[4:])
