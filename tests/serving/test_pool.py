"""The fair queue, with workers that only write down what they are given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.serving.messages import (
    Failed,
    ReadFacts,
    Ready,
    WorkerSetup,
    frame,
    parse_reply,
)
from cmamil_sdk.serving.paths import SlideRef
from cmamil_sdk.serving.pool import WorkerPool, WorkerState
from cmamil_sdk.serving.turns import Item, Job


class Recorder:
    """Stands for a worker: notes its task and answers with it when told to."""

    def __init__(self, pool: WorkerPool, order: list[str]) -> None:
        self.state = WorkerState.IDLE
        self._pool, self._order = pool, order
        self.item: Item

    def take_own(self) -> list[Item]:
        return []

    def assign(self, items: list[Item]) -> None:
        (self.item,) = items
        self.state = WorkerState.BUSY
        self._order.append(name_of(self.item.task))

    def finish(self) -> None:
        self.state = WorkerState.IDLE
        self.item.answer(self.item.task)  # type: ignore[arg-type]
        self._pool.dispatch()


def task(name: str) -> ReadFacts:
    return ReadFacts(SlideRef("/slides", (name,), 0, 0, 0, 0), None)


def name_of(asked: Any) -> str:
    return str(asked.slide.name)


def recording_pool(order: list[str]) -> tuple[WorkerPool, Recorder]:
    setup = WorkerSetup(0, (), "auto", 0, 1, 1, 1, 1, 1)
    pool = WorkerPool(setup, workers=0, task_timeout_s=1.0)
    recorder = Recorder(pool, order)
    pool.slots = [recorder]  # type: ignore[list-item]
    return pool, recorder


async def collect(job: Job, names: list[str]) -> list[str]:
    return [name_of(reply) async for reply in job.run_all(map(task, names))]


def test_jobs_take_turns() -> None:
    async def scenario() -> list[str]:
        order: list[str] = []
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
    async def scenario() -> list[str]:
        order: list[str] = []
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
        order: list[str] = []
        pool, recorder = recording_pool(order)
        with pool.job() as job:
            work = asyncio.create_task(job.run(task("a")))
            await asyncio.sleep(0)
            recorder.item.answer(SlideCorrupt("broken"))
            with pytest.raises(SlideCorrupt):
                await work

    asyncio.run(scenario())


def test_why_a_worker_does_not_come_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        setup = WorkerSetup(0, (), "auto", 0, 1, 1, 1, 1, 1)
        (slot,) = WorkerPool(setup, workers=1, task_timeout_s=1.0).slots
        slot._on_reply(Ready({}))
        slot._on_reply(Failed("BUNDLE_CORRUPT", "encoder.onnx is another file"))

    asyncio.run(scenario())
    assert "worker_not_started worker=0" in caplog.text
    assert "encoder.onnx is another file" in caplog.text


def test_only_the_classes_of_the_protocol_are_unpickled() -> None:
    assert parse_reply(frame(Failed("R", "m"))[4:]) == Failed("R", "m")
    for stranger in (asyncio.run, print, EncodedBatch.__init__, WorkerPool):
        with pytest.raises(Exception, match="a child process sent"):
            parse_reply(frame(stranger)[4:])
