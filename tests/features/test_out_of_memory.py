"""Where a GPU has no memory for a batch it is encoded in smaller ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.engines import EngineInfo, onnxruntime
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.errors import GpuOutOfMemory, MemoryTooSmall, UnexpectedError
from cmamil_sdk.features.encode import infer_tiles

ON_GPU = EngineInfo("onnxruntime", "cuda:0", "fp32", "1", "a test", takes_device_arrays=True)
FULL = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : BFCArena::AllocateRawInternal Failed to allocate "
    "memory for requested buffer of size 939524096",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0",
    "[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    "[ONNXRuntimeError] : 1 : FAIL : CUDNN failure: CUDNN_STATUS_ALLOC_FAILED",
)


class Small:
    """An engine whose device has room for so many tiles."""

    info = ON_GPU

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []

    def infer(self, inputs: Any) -> dict[str, np.ndarray]:
        tiles = inputs["tiles"]
        self.asked.append(len(tiles))
        if len(tiles) > self.room:
            raise GpuOutOfMemory("full")
        return {"features": tiles[:, 0, 0, :1].astype(np.float32)}

    def close(self) -> None:
        pass


def numbered(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, -1)


@pytest.mark.parametrize(
    ("room", "asked"),
    [
        (20, [20]),
        (10, [20, 10, 10]),
        (9, [20, 10, 5, 5, 5, 5]),
        (1, [20, 10, 5, 2] + 20 * [1]),
    ],
)
def test_a_batch_is_halved_until_it_fits(room: int, asked: list[int]) -> None:
    engine = Small(room)
    features = infer_tiles(engine, numbered(20))
    assert engine.asked == asked
    np.testing.assert_array_equal(features, np.arange(20, dtype=np.float32)[:, None])


def test_what_does_not_fit_at_all_is_refused() -> None:
    engine = Small(0)
    with pytest.raises(GpuOutOfMemory):
        infer_tiles(engine, numbered(5))
    assert engine.asked == [5, 2, 1]


def failing(message: str, info: EngineInfo, monkeypatch: pytest.MonkeyPatch) -> OnnxRuntimeEngine:
    def fail(*_: Any) -> None:
        raise onnxruntime._STATE.RuntimeException(message)

    engine = object.__new__(OnnxRuntimeEngine)
    engine.info, engine._graph = info, Path("encoder.onnx")
    for way in ("_on_device", "_on_host"):
        monkeypatch.setattr(engine, way, fail, raising=False)
    return engine


@pytest.mark.parametrize("message", FULL)
def test_onnxruntime_says_in_words_that_a_gpu_is_full(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        GpuOutOfMemory, match=r"cuda:0 has too little free memory for encoder\.onnx"
    ):
        failing(message, ON_GPU, monkeypatch).infer({})
    on_cpu = replace(ON_GPU, device="cpu", takes_device_arrays=False)
    engine, again = failing(message, on_cpu, monkeypatch), object()
    engine._open = lambda: again
    with pytest.raises(MemoryTooSmall, match="needs more memory than there is for this process"):
        engine.infer({})
    assert engine._session is again, "else its arena would not give the memory back"


def test_other_errors_of_a_gpu_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access"
    with pytest.raises(UnexpectedError, match="illegal memory access"):
        failing(message, ON_GPU, monkeypatch).infer({})
