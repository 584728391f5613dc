"""A worker runs graphs on tensors; what goes wrong is typed and names no path of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden, read_golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.engines.choose import engine_precisions
from cmamil_sdk.engines.graphs import hashes_read
from cmamil_sdk.errors import DecoderCrashed, GpuOutOfMemory
from cmamil_sdk.serving.messages import (
    EncoderSpec,
    Failed,
    GraphOutputs,
    GraphSpec,
    ModelSpec,
    RunGraph,
    WorkerSetup,
    frame,
    parse_reply,
)
from cmamil_sdk.serving.pool import WorkerPool
from cmamil_sdk.serving.turns import Item
from cmamil_sdk.serving.worker import Worker
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

SETUP = WorkerSetup(0, (), "auto", 0, 1, 1, 1, 1, 1)
ENGINE = EngineInfo("onnxruntime", "cpu", "fp32", "", "a test")


def worker_with(graph: Path, hashes: Mapping[str, str], engine: EngineInfo = ENGINE) -> Worker:
    """One of a model whose encoder is not loaded."""
    encoder = EncoderSpec(str(graph), {}, ENGINE, TilingRecipe(scales=parse_scales("20x")))
    worker = Worker(SETUP)
    worker._models[7] = ModelSpec(7, encoder, GraphSpec(str(graph), hashes, engine))
    return worker


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path) -> Golden:
    return read_golden(tiny_bundle, read_manifest(tiny_bundle)[0])


@pytest.fixture(scope="module")
def worker(tiny_bundle: Path) -> Worker:
    return worker_with(tiny_bundle / AGGREGATOR_GRAPH, read_manifest(tiny_bundle)[0].hashes)


@pytest.mark.skipif(
    "bf16" not in engine_precisions("openvino"), reason="this processor has no bf16 arithmetic"
)
def test_an_aggregator_in_bf16(tiny_bundle: Path, golden: Golden) -> None:
    graph, info = tiny_bundle / AGGREGATOR_GRAPH, replace(ENGINE, name="openvino", precision="bf16")
    hashes = hashes_read(graph, "bf16", read_manifest(tiny_bundle)[0].hashes)
    assert len(hashes) == 3
    reply = worker_with(graph, hashes, info).answer(RunGraph(7, "aggregator", golden.inputs))
    assert isinstance(reply, GraphOutputs)
    assert golden.aggregator_difference(reply.outputs) < 1e-4


def fail(worker: Worker, inputs: Any) -> Failed:
    reply = worker.answer(RunGraph(7, "aggregator", inputs))
    assert isinstance(reply, Failed)
    return reply


def test_a_graph_runs_and_its_answer_passes_the_gate(worker: Worker, golden: Golden) -> None:
    reply = worker.answer(RunGraph(7, "aggregator", golden.inputs, part=3))
    reply = parse_reply(frame(reply)[4:])  # only known classes may come from a worker
    assert isinstance(reply, GraphOutputs)
    assert reply.part == 3
    assert golden.aggregator_difference(reply.outputs) <= GOLDEN_MAX_DIFFERENCE["fp32"]


def test_inputs_that_the_graph_refuses(worker: Worker, golden: Golden, tiny_bundle: Path) -> None:
    failed = fail(worker, golden.inputs | {"ancestor_20x": golden.inputs["ancestor_20x"] + 10**6})
    assert failed.reason == "FIELD_INVALID" and not failed.details
    failed = fail(worker, {})
    assert failed.reason == "FIELD_INVALID"
    assert str(tiny_bundle) not in failed.message and "aggregator.onnx" in failed.message


class Strange:
    """An engine that does not answer as it should."""

    info = ENGINE

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def infer(self, _inputs: Any) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        return {"logits": self._answer}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (np.array([[0.0, np.nan]], np.float32), "NON_FINITE_OUTPUT"),
        (np.array([[np.inf, 0.0]], np.float32), "NON_FINITE_OUTPUT"),
        (MemoryError(), "MEMORY_TOO_SMALL"),
        (GpuOutOfMemory("cuda:0 has no memory for aggregator.onnx"), "GPU_OUT_OF_MEMORY"),
        (RuntimeError("nobody foresaw this"), "UNEXPECTED_ERROR"),
    ],
)
def test_what_goes_wrong_is_typed(
    worker: Worker, golden: Golden, monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    key = worker._models[7].aggregator.key
    monkeypatch.setitem(worker._engines, key, Strange(answer))  # type: ignore[arg-type]
    failed = fail(worker, golden.inputs)
    assert failed.reason == reason
    assert "aggregator" in failed.message and "foresaw" not in failed.message
    assert ("nobody foresaw this" in failed.details) == (reason == "UNEXPECTED_ERROR")


def test_a_graph_that_changed_since_the_start_is_not_run(
    worker: Worker, golden: Golden, tmp_path: Path
) -> None:
    graph = tmp_path / "secret" / AGGREGATOR_GRAPH
    graph.parent.mkdir()
    spec = worker._models[7].aggregator
    graph.write_bytes(Path(spec.graph).read_bytes() + b"x")
    failed = fail(worker_with(graph, spec.hashes), golden.inputs)
    assert failed.reason == "BUNDLE_CORRUPT" and "secret" not in failed.message
    graph.unlink()
    failed = fail(worker_with(graph, spec.hashes), golden.inputs)
    assert failed.reason == "BUNDLE_CORRUPT" and "secret" not in failed.message


def test_tensors_that_end_two_workers_are_blamed(golden: Golden) -> None:
    async def scenario() -> None:
        pool = WorkerPool(SETUP, workers=0, task_timeout_s=1.0)
        results: Any = asyncio.Queue()
        with pool.job() as job:
            item = Item(RunGraph(7, "aggregator", golden.inputs), job, results)
            pool.retry([item])
            assert results.empty() and job.pending.popleft() is item
            pool.retry([item])
            problem = results.get_nowait()
            assert isinstance(problem, DecoderCrashed)
            assert "Running the aggregator on the tensors of a request ended two" in str(problem)

    asyncio.run(scenario())
