"""A worker encodes batches of several slides together: each as if it were alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.bundle.manifest import ENCODER_GRAPH
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.serving.messages import (
    EncoderSpec,
    EncodeTiles,
    EncodeTogether,
    Failed,
    MakePlan,
    ModelSpec,
    Parts,
    Planned,
    WorkerSetup,
    frame,
    parse_reply,
)
from cmamil_sdk.serving.paths import SlideRef, resolve
from cmamil_sdk.serving.worker import Worker
from cmamil_sdk.tiling.batches import TileBatch
from cmamil_sdk.tiling.plan import TilePlan

NAMES = ("a.svs", "b.svs", "c.svs")


def worker_with(tiny_bundle: Path, engine: str) -> Worker:
    manifest = read_manifest(tiny_bundle)[0]
    info = EngineInfo(engine, "cpu", "fp32", "", "a test")
    graph = str(tiny_bundle / ENCODER_GRAPH)
    spec = EncoderSpec(graph, manifest.hashes, info, manifest.recipe)
    return Worker(WorkerSetup(0, (ModelSpec(0, spec, spec),), "auto", 0, 4, 1000, 2**40, 2**20, 32))


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def worker(request: pytest.FixtureRequest, tiny_bundle: Path) -> Worker:
    return worker_with(tiny_bundle, request.param)


@pytest.fixture
def refs(tmp_path: Path, synthetic_slide: Path) -> list[SlideRef]:
    """Three slides."""
    for name in NAMES:
        shutil.copy(synthetic_slide, tmp_path / name)
    return [resolve(name, [tmp_path]) for name in NAMES]


def plan_of(worker: Worker, ref: SlideRef) -> TilePlan:
    planned = worker.answer(MakePlan(ref, None, 0))
    assert isinstance(planned, Planned)
    return planned.plan


def parts_of(plan: TilePlan) -> list[TileBatch]:
    """Three batches of a few tiles, different ones."""
    small = plan.batches(9)
    return [small[0], small[1], small[len(small) - 1]]


def together(worker: Worker, tasks: list[EncodeTiles]) -> list[Any]:
    reply = parse_reply(frame(worker.answer(EncodeTogether(tuple(tasks))))[4:])
    assert isinstance(reply, Parts)
    return list(reply.replies)


def assert_same(found: Any, expected: Any) -> None:
    assert isinstance(found, EncodedBatch) and isinstance(expected, EncodedBatch)
    np.testing.assert_array_equal(found.features, expected.features)  # to the last bit
    np.testing.assert_array_equal(found.ok, expected.ok)
    np.testing.assert_array_equal(found.batch.plan_row, expected.batch.plan_row)


def test_features_do_not_depend_on_batch_mates(worker: Worker, refs: list[SlideRef]) -> None:
    batches = parts_of(plan_of(worker, refs[0]))
    tasks = [EncodeTiles(ref, None, 0, part) for ref, part in zip(refs, batches, strict=True)]
    alone = [worker.answer(task) for task in tasks]
    assert len({len(part) for part in batches}) > 1
    for order in ((0, 1, 2), (2, 0, 1), (1, 2)):
        answers = together(worker, [tasks[number] for number in order])
        for number, answer in zip(order, answers, strict=True):
            assert_same(answer, alone[number])
            assert answer.seconds_decode > 0 and answer.seconds_encode > 0


@pytest.fixture(scope="module")
def one_worker(tiny_bundle: Path) -> Worker:
    return worker_with(tiny_bundle, "onnxruntime")


def test_a_slide_that_cannot_be_read_fails_alone(
    one_worker: Worker, refs: list[SlideRef], with_zeroed: Callable[..., Path]
) -> None:
    """One is gone, of one a tile is damaged, one is whole."""
    batches = parts_of(plan_of(one_worker, refs[0]))
    gone, whole = refs[1], EncodeTiles(refs[2], None, 0, batches[1])
    alone = one_worker.answer(whole)
    gone.path.unlink()
    damaged_file = with_zeroed(refs[0].path, (1, 0))
    damaged = EncodeTiles(resolve(damaged_file.name, [damaged_file.parent]), None, 0, batches[0])
    answers = together(one_worker, [damaged, EncodeTiles(gone, None, 0, batches[0]), whole])
    assert isinstance(answers[0], EncodedBatch) and not answers[0].ok.all()
    assert isinstance(answers[1], Failed) and answers[1].reason == "SLIDE_NOT_FOUND"
    assert_same(answers[2], alone)


class Strange:
    """An engine that goes wrong when it sees a pixel of 17 in a tile's corner."""

    info = EngineInfo("strange", "cpu", "fp32", "1", "test")

    def __init__(self, problem: BaseException | None) -> None:
        self._problem = problem

    def infer(self, inputs: Any) -> dict[str, np.ndarray]:
        bad = inputs["tiles"][:, 0, 0, 0] == 17
        if self._problem is not None and bad.any():
            raise self._problem
        return {"features": np.where(bad, np.nan, 1.0).astype(np.float32)[:, None]}


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (None, "NON_FINITE_OUTPUT"),
        (MemoryError(), "SLIDE_TOO_LARGE"),
        (RuntimeError("nobody foresaw this"), "UNEXPECTED_ERROR"),
    ],
)
def test_a_slide_that_the_encoder_cannot_take_fails_alone(
    one_worker: Worker,
    refs: list[SlideRef],
    monkeypatch: pytest.MonkeyPatch,
    problem: BaseException | None,
    reason: str,
) -> None:
    batches = parts_of(plan_of(one_worker, refs[0]))
    key = one_worker._setup.models[0].encoder.key
    engine: Engine = Strange(problem)  # type: ignore[assignment]
    monkeypatch.setitem(one_worker._engines, key, engine)
    mark_tiles_of(refs[1], one_worker, monkeypatch)
    tasks = [EncodeTiles(ref, None, 0, part) for ref, part in zip(refs, batches, strict=True)]
    answers = together(one_worker, tasks)
    assert isinstance(answers[1], Failed) and answers[1].reason == reason
    assert "b.svs" in answers[1].message
    assert isinstance(answers[0], EncodedBatch) and isinstance(answers[2], EncodedBatch)


def mark_tiles_of(ref: SlideRef, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the slide's reader return pixels of 17."""
    reader = worker._slides.reader(ref, None)
    read = reader.read_region

    def marked(*args: Any, **kwargs: Any) -> Any:
        return np.full_like(read(*args, **kwargs), 17)

    monkeypatch.setattr(reader, "read_region", marked)
