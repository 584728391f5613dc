"""Which batches of tiles share a turn, and what becomes of them when their worker dies."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.errors import CmamilError, DecoderCrashed
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.serving.messages import (
    EncoderSpec,
    EncodeTiles,
    EncodeTogether,
    Failed,
    MakePlan,
    ModelSpec,
    Parts,
    Task,
    WorkerSetup,
)
from cmamil_sdk.serving.paths import SlideRef
from cmamil_sdk.serving.pool import Slot, WorkerPool, WorkerState, _message
from cmamil_sdk.serving.quarantine import Quarantine
from cmamil_sdk.serving.turns import SHARED_TILES, Item, Job, Turns
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

ON_CPU = EngineInfo("onnxruntime", "cpu", "fp32", "1", "test")
ON_GPU = EngineInfo("onnxruntime", "cuda:0", "fp32", "1", "test", takes_device_arrays=True)
RECIPE = TilingRecipe(scales=parse_scales("20x"))


def ref(name: str, **changed: int) -> SlideRef:
    facts = {"device": 1, "inode": sum(name.encode()), "size": 3, "mtime_ns": 4}
    return SlideRef("/slides", (name,), **facts | changed)


def tiles(slide: str, count: int, model: int = 0) -> EncodeTiles:
    return EncodeTiles(ref(slide), None, model, range(count))  # type: ignore[arg-type]


CORRUPT = Failed("SLIDE_CORRUPT", "broken")


def encoded(count: int) -> EncodedBatch:
    found = np.ones(count, dtype=bool)
    return EncodedBatch(range(count), np.zeros((count, 2), np.float32), found, 0.0, 0.0)  # type: ignore[arg-type]


class Waiting:
    """Jobs of one task each, or more, in their turns; model 1 has an encoder of its own."""

    def __init__(self, *tasks: Task | list[Task]) -> None:
        self.turns = Turns(lambda task: task.model)
        for given in tasks:
            job = Job(lambda _job: None)
            job._offer(given if isinstance(given, list) else [given])
            self.turns.add(job)

    def take(self) -> list[str]:
        """Slides that are served together."""
        return [item.task.slide.name for item in self.turns.take()]  # type: ignore[union-attr]


def test_small_batches_of_several_slides_share_a_turn() -> None:
    waiting = Waiting(*(tiles(f"{n}", 6) for n in range(8)))
    assert [waiting.take() for _ in range(3)] == [["0", "1", "2", "3", "4"], ["5", "6", "7"], []]


def test_a_full_batch_has_its_turn_alone() -> None:
    waiting = Waiting(tiles("full", SHARED_TILES), tiles("a", 1), tiles("larger", 200))
    assert [waiting.take() for _ in range(3)] == [["full"], ["a"], ["larger"]]


def test_what_does_not_fit_waits_for_its_own_turn() -> None:
    waiting = Waiting(tiles("a", 20), tiles("b", 20), tiles("c", 5), tiles("d", 7))
    assert [waiting.take() for _ in range(2)] == [["a", "c", "d"], ["b"]]


def test_a_huge_slide_gives_one_batch_a_turn() -> None:
    huge: list[Task] = [tiles("huge", 24) for _ in range(50)]
    waiting = Waiting(huge, [tiles("a", 8), tiles("a", 8)], tiles("b", 24))
    assert [waiting.take() for _ in range(4)] == [["huge", "a"], ["b", "a"], ["huge"], ["huge"]]


def test_only_batches_of_one_encoder_share() -> None:
    waiting = Waiting(tiles("a", 2), tiles("other", 2, model=1), MakePlan(ref("plan"), None, 0))
    assert [waiting.take() for _ in range(3)] == [["a"], ["other"], ["plan"]]


def test_a_dropped_job_leaves_its_batch_mates() -> None:
    waiting = Waiting(tiles("a", 2), tiles("dropped", 2), tiles("c", 2))
    with waiting.turns._jobs[1]:
        pass
    assert waiting.take() == ["a", "c"]


def setup(info: EngineInfo, *, reader: Any = "auto") -> WorkerSetup:
    spec = EncoderSpec("encoder.onnx", {"encoder.onnx": "0" * 64}, info, RECIPE)
    models = tuple(ModelSpec(number, spec, spec) for number in (0, 1))
    return WorkerSetup(0, models, reader, 0, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("info", "reader", "shared"),
    [(ON_CPU, "auto", True), (ON_GPU, "auto", True), (ON_GPU, "cucim", False)],
)
def test_models_of_one_encoder_share_unless_a_gpu_decodes(
    info: EngineInfo, reader: str, shared: bool
) -> None:
    async def scenario() -> int:
        pool = WorkerPool(setup(info, reader=reader), workers=0, task_timeout_s=1.0)
        for model in (0, 1):
            pool.job()._offer([tiles("a", 3, model)])
        return len(pool._turns.take())

    assert asyncio.run(scenario()) == (2 if shared else 1)


class Crashing:
    """A pool without workers, whose batches end them."""

    def __init__(self, *slides: str) -> None:
        self.pool = WorkerPool(setup(ON_CPU), workers=0, task_timeout_s=1.0, quarantine_s=60.0)
        self.results = {slide: self.pool.job()._offer([tiles(slide, 4)]) for slide in slides}

    def crash(self) -> list[str]:
        """The slides of the next batch, which ends its worker."""
        items = self.pool._turns.take()
        self.pool.retry(items)
        return [item.task.slide.name for item in items]  # type: ignore[union-attr]

    def result(self, slide: str) -> object:
        return self.results[slide].get_nowait()


def test_only_a_slide_alone_in_its_batch_is_blamed() -> None:
    async def scenario() -> None:
        crashing = Crashing("a", "b")
        assert [crashing.crash() for _ in range(3)] == [["a", "b"], ["a"], ["a"]]
        assert "a ended two worker processes;" in str(crashing.result("a"))
        assert crashing.results["b"].empty()
        (item,) = crashing.pool._turns.take()
        assert (item.alone, item.crashes) == (True, 0)

    asyncio.run(scenario())


def test_tasks_of_a_slide_in_quarantine_are_refused() -> None:
    """Also those of requests that wait already: each would end two more workers."""

    async def scenario() -> None:
        crashing = Crashing("a")
        crashing.crash()
        crashing.crash()
        again = crashing.pool.job()._offer([tiles("a", 4), tiles("b", 4)])
        crashing.pool.slots = [Idle()]  # type: ignore[list-item]
        crashing.pool.dispatch()
        assert isinstance(again.get_nowait(), DecoderCrashed)
        assert again.empty()
        assert [item.task.slide.name for item in crashing.pool.slots[0].current] == ["b"]  # type: ignore[union-attr]

    asyncio.run(scenario())


class Idle:
    """A worker that takes what it is given."""

    state = WorkerState.IDLE

    def take_own(self) -> list[Item]:
        return []

    def assign(self, items: list[Item]) -> None:
        self.state, self.current = WorkerState.BUSY, items


def test_each_slide_of_a_batch_gets_its_own_answer() -> None:
    async def scenario() -> None:
        counted: list[int] = []
        pool = WorkerPool(
            setup(ON_CPU),
            workers=0,
            task_timeout_s=1.0,
            on_batch=lambda parts: counted.append(sum(len(part.batch) for part in parts)),
        )
        results = [pool.job()._offer([tiles(slide, 4)]) for slide in "ab"]
        slot = Slot(pool, 0)
        slot.current = pool._turns.take()
        sent = _message(slot.current)
        assert isinstance(sent, EncodeTogether) and len(sent.tasks) == 2
        slot._on_reply(Parts((encoded(4), CORRUPT)))
        assert isinstance(results[0].get_nowait(), EncodedBatch)
        assert isinstance(results[1].get_nowait(), CmamilError)
        assert (slot.tiles, counted) == (4, [4])

    asyncio.run(scenario())


def test_a_worker_that_miscounts_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        pool = WorkerPool(setup(ON_CPU), workers=0, task_timeout_s=1.0)
        results = pool.job()._offer([tiles("a", 4)])
        slot = Slot(pool, 0)
        slot.current = pool._turns.take()
        slot._on_reply(Parts((CORRUPT, CORRUPT)))
        assert results.empty() and slot.current

    asyncio.run(scenario())
    assert "sent 2 answers" in caplog.text


def test_a_file_in_quarantine_is_let_out_when_it_changes_or_with_time() -> None:
    now = 0.0
    quarantine = Quarantine(60.0, clock=lambda: now)
    quarantine.add(ref("a"))
    with pytest.raises(DecoderCrashed, match=r"a ended two worker .* for 60 s"):
        quarantine.check(ref("a"))
    with pytest.raises(DecoderCrashed):
        quarantine.check(ref("hard-link", inode=ref("a").inode))
    quarantine.check(ref("a", mtime_ns=5))
    now = 60.0
    quarantine.check(ref("a"))
    assert not quarantine._until


def test_a_quarantine_is_bounded_and_may_be_off() -> None:
    quarantine = Quarantine(60.0)
    for number in range(5000):
        quarantine.add(ref("a", inode=number))
    assert len(quarantine._until) == 4096
    quarantine.check(ref("a", inode=0))
    off = Quarantine(0.0)
    off.add(ref("a"))
    off.check(ref("a"))
