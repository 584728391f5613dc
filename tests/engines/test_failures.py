"""A run that fails says why, as an error of the package, and the engine goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import EngineInfo, load_engine
from cmamil_sdk.engines.failures import run_failed
from cmamil_sdk.errors import BundleUnsupported, GpuOutOfMemory, MemoryTooSmall, UnexpectedError

from .small_memory import NAMES, ROWS
from .test_onnxruntime import save_graph


def test_memory_that_runs_out(tmp_path: Path) -> None:
    """onnxruntime would take all that there is for the next small bag, and fail for the one after.

    OpenVINO is not asked: it may end the process (docs/engines.md).
    """
    pytest.importorskip("torch")
    graph = save_graph(
        tmp_path / "scores.onnx",
        [
            ("Transpose", ["x"], ["t"], {"perm": [1, 0]}),
            ("MatMul", ["x", "t"], ["s"], {}),
            ("ReduceMean", ["s"], ["y"], {"keepdims": 0}),
        ],
        {"x": ("FLOAT", ["n", 4])},
        {"y": ("FLOAT", [])},
    )
    command = [sys.executable, "-m", "tests.engines.small_memory", str(graph)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = ["MEMORY_TOO_SMALL" if rows == 60_000 else 4.0 for rows in ROWS]
    assert json.loads(run.stdout) == dict.fromkeys(NAMES, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_that_fails_on_the_way(tmp_path: Path, name: str) -> None:
    """OpenVINO does not compare the sizes."""
    pytest.importorskip(name)
    graph = save_graph(
        tmp_path / "pairs.onnx",
        [
            ("Constant", [], ["shape"], {"value_ints": [-1, 8]}),
            ("Reshape", ["x", "shape"], ["y"], {}),
        ],
        {"x": ("FLOAT", ["n", 4])},
        {"y": ("FLOAT", ["m", 8])},
    )
    engine = load_engine(graph, engine=name, device="cpu", callers=1)
    for _ in range(2):
        with pytest.raises(
            BundleUnsupported, match=r"pairs\.onnx cannot be run .* use another --engine"
        ):
            engine.infer({"x": np.ones((3, 4), np.float32)})
        assert engine.infer({"x": np.ones((4, 4), np.float32)})["y"].shape == (2, 8)


def test_rows_that_openvino_left_in_its_outputs(tmp_path: Path) -> None:
    """What it does when memory runs out in its one thread."""
    shape = ("FLOAT", ["n", 4])
    graph = save_graph(
        tmp_path / "g.onnx", [("Relu", ["x"], ["y"], {})], {"x": shape}, {"y": shape}
    )
    engine = load_engine(graph, engine="openvino", device="cpu", callers=1)
    found = engine.infer({"x": np.ones((3, 4), np.float32)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmamil_sdk.engines.openvino._Requests.infer", lambda *_: found)
        with pytest.raises(
            BundleUnsupported, match=r"g\.onnx on openvino gave 3 rows of y for 9: .*more"
        ):
            engine.infer({"x": np.ones((9, 4), np.float32)})
    assert engine.infer({"x": np.ones((9, 4), np.float32)})["y"].shape == (9, 4)


def test_what_a_failure_is_called() -> None:
    host, device = (EngineInfo("onnxruntime", at, "fp32", "1", "") for at in ("cpu", "cuda:1"))
    full, other = RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError("illegal address")
    for info, problem, error, said in (
        (host, full, MemoryTooSmall, "more memory"),
        (host, MemoryError(), MemoryTooSmall, "more memory"),
        (host, other, BundleUnsupported, "illegal address"),
        (device, full, GpuOutOfMemory, "cuda:1"),
        (device, other, UnexpectedError, "illegal address"),
    ):
        found = run_failed(info, "g.onnx", problem, str(problem))
        assert type(found) is error
        assert said in str(found)
