"""Workers load and drop models; one that cannot harms neither the pool nor what it has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.errors import BundleCorrupt, BundleUnsupported
from cmamil_sdk.serving import worker
from cmamil_sdk.serving.messages import (
    AddModel,
    DropModel,
    EncoderSpec,
    Failed,
    GraphSpec,
    ModelAdded,
    ModelDropped,
    ModelSpec,
    RunGraph,
    WorkerSetup,
    frame,
    parse_reply,
)
from cmamil_sdk.serving.pool import WorkerPool
from cmamil_sdk.serving.worker_models import add_model, drop_model
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

ON_CPU = EngineInfo("onnxruntime", "cpu", "fp32", "1", "a test")
RECIPE = TilingRecipe(scales=parse_scales("20x"))


def spec(number: int, encoder: str = "encoder", info: EngineInfo = ON_CPU) -> ModelSpec:
    graph = GraphSpec(f"/secret/{number}/aggregator.onnx", {"a": f"aggregator {number}"}, info)
    path = f"/secret/{number}/{encoder}.onnx"
    return ModelSpec(number, EncoderSpec(path, {f"{encoder}.onnx": encoder}, info, RECIPE), graph)


def setup_of(*models: ModelSpec) -> WorkerSetup:
    return WorkerSetup(0, models, "auto", 0, 1, 1, 1, 1, 1)


class Loaded:
    """An engine that tells when it is closed."""

    def __init__(self, graph: GraphSpec) -> None:
        self.info, self.is_open = graph.engine, True

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Loaded]:
    """Engines by the sha256 of their graphs, in place of real ones."""
    engines: dict[str, Loaded] = {}

    def load(graph: GraphSpec) -> Any:
        return engines.setdefault(*graph.hashes.values(), Loaded(graph))

    monkeypatch.setattr(worker, "_load", load)
    return engines


def test_an_engine_is_closed_when_no_model_uses_it(loaded: dict[str, Loaded]) -> None:
    made = worker.Worker(setup_of(spec(0, "shared"), spec(1, "own")))
    reply = parse_reply(frame(made.answer(AddModel(spec(5, "shared"))))[4:])
    assert reply == ModelAdded(ON_CPU)
    assert made.ready().engines == {0: ON_CPU, 1: ON_CPU, 5: ON_CPU}
    for number, still_open in ((0, {"shared", "own"}), (1, {"shared"}), (5, set()), (7, set())):
        assert parse_reply(frame(made.answer(DropModel(number)))[4:]) == ModelDropped()
        assert {name for name, engine in loaded.items() if engine.is_open} == still_open


def test_a_task_for_a_model_that_is_gone_is_told_so(loaded: dict[str, Loaded]) -> None:
    failed = worker.Worker(setup_of(spec(0))).answer(RunGraph(4, "encoder", {}))
    assert isinstance(failed, Failed) and failed.reason == "MODEL_NOT_FOUND"


def test_a_worker_held_to_its_memory_takes_no_model_for_a_gpu(loaded: dict[str, Loaded]) -> None:
    made = worker.Worker(setup_of(spec(0)))
    made._is_limited = True  # to limit the process of the tests would be for good
    failed = made.answer(AddModel(spec(1, info=replace(ON_CPU, device="cuda:0"))))
    assert isinstance(failed, Failed) and failed.reason == "ENGINE_MISSING"
    assert list(made._models) == [0]


def test_a_model_that_changed_or_ends_its_worker_is_not_added(odd_worker: tuple[str, ...]) -> None:
    """Real processes, without any model at first."""

    async def scenario() -> None:
        setup = replace(setup_of(), parent_pid=worker.os.getpid())
        pool = WorkerPool(setup, workers=1, task_timeout_s=20.0, command=odd_worker)
        await pool.start()
        try:
            with pytest.raises(BundleCorrupt) as corrupt:
                await add_model(pool, spec(1))
            assert "encoder.onnx" in str(corrupt.value) and "secret" not in str(corrupt.value)
            with pytest.raises(BundleUnsupported, match="ended a worker process"):
                await add_model(pool, spec(2, "poison"))
            assert pool.restarts == 1 and pool.setup.models == () and pool.engines == {}
            await drop_model(pool, 2)  # when it is back
            assert pool.slots[0].models == set()
        finally:
            await pool.stop()

    asyncio.run(scenario())
