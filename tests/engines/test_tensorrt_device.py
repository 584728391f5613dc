"""What needs a CUDA device and a TensorRT that builds for it; skipped, with the reason, elsewhere."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.base import TENSORRT, RuntimeName
from cmamil_sdk.engines.cuda import Cuda
from cmamil_sdk.engines.tensorrt import available
from cmamil_sdk.errors import EngineMissing, FieldInvalid
from cmamil_sdk.export.plans import PlanTarget, cache_plans, plan_target


def lacking(runtime: RuntimeName) -> str:
    """Why plans of a runtime cannot run here, empty if they can."""
    about = available(runtime)
    if not about["available"]:
        return f"{about['why']}: {about['fix']}"
    try:
        plan_target(runtime, ())
    except (EngineMissing, FieldInvalid) as problem:
        return str(problem)
    return "" if importlib.util.find_spec("onnx") else "onnx is not installed"


pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=TENSORRT)
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    reason = lacking(request.param)
    if reason:
        pytest.skip(reason)
    found: RuntimeName = request.param
    return found


@pytest.fixture(scope="module")
def cache(runtime: RuntimeName, tiny_bundle: Path, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("plans")
    target = PlanTarget(runtime, (Cuda(0).compute_capability,))
    scales = Bundle.load(tiny_bundle, device="cpu").manifest.recipe.scales
    cache_plans(tiny_bundle, scales, target, folder)
    return folder


def test_a_bundle_reproduces_its_golden_values(runtime, cache, tiny_bundle):
    bundle = Bundle.load(tiny_bundle, engine=runtime, engine_cache=cache)
    assert bundle.engine_label.startswith(f"{runtime}-cuda")


def test_the_encoder_agrees_with_the_cpu_whatever_the_batch(runtime, cache, tiny_bundle):
    graph = tiny_bundle / "encoder.onnx"
    tiles = np.random.default_rng(0).integers(0, 256, (140, 224, 224, 3), dtype=np.uint8)
    cpu = load_engine(graph, engine="onnxruntime", device="cpu").infer({"tiles": tiles})["features"]
    engine = load_engine(graph, engine=runtime, engine_cache=cache)
    for n in (1, 8, 9, 64, 140, 8, 8, 8):
        got = engine.infer({"tiles": tiles[:n]})["features"]
        cosine = (got * cpu[:n]).sum(1) / np.linalg.norm(got, axis=1)
        assert (cosine / np.linalg.norm(cpu[:n], axis=1)).min() >= 0.9999
    engine.close()


def test_callers_at_once_get_what_they_get_alone(runtime, cache, tiny_bundle):
    engine = load_engine(tiny_bundle / "encoder.onnx", engine=runtime, engine_cache=cache)
    tiles = np.random.default_rng(1).integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)
    sizes = (3, 8, 20, 40)
    alone = [engine.infer({"tiles": tiles[:n]})["features"] for n in sizes]
    together: list[np.ndarray | None] = [None] * len(sizes)

    def call(position: int) -> None:
        for _ in range(5):
            together[position] = engine.infer({"tiles": tiles[: sizes[position]]})["features"]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(alone, together, strict=True):
        np.testing.assert_array_equal(got, expected)
