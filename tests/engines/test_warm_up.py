"""Warm-up runs what will be used, and memory is what the runtime says, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import load_engine

from .graphs import save_graph
from .tensorrt_double import FakeCuda
from .test_tensorrt import bag, graphs, open_engine, tiles  # noqa: F401


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_an_engine_that_is_warm_answers_as_before(tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    graph = save_graph(
        tmp_path / "g.onnx",
        [
            ("Constant", [], ["w"], {"value_floats": [2.0, 3.0, 4.0]}),
            ("Mul", ["x", "w"], ["y"], {}),
        ],
        {"x": ("FLOAT", ["n", 3])},
        {"y": ("FLOAT", ["n", 3])},
    )
    engine = load_engine(graph, engine=name, device="cpu", callers=1)
    for rows in (1, 5):
        engine.warm_up(rows)
    found = engine.infer({"x": np.ones((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(found, [[2, 3, 4]] * 2)
    assert engine.memory_bytes() == (3 * 4 if name == "torch" else None)


def test_an_aggregator_is_warmed_with_indices_that_point_somewhere(tiny_bundle: Path) -> None:
    engine = load_engine(tiny_bundle / "aggregator.onnx", engine="onnxruntime", device="cpu")
    engine.warm_up(3)


def test_a_warm_plan_has_its_batches_recorded(graphs: Path) -> None:  # noqa: F811
    """Sizes are 2 and 4 tiles."""
    engine = open_engine(graphs / "encoder.onnx", cuda := FakeCuda())
    before = engine.memory_bytes()
    engine.warm_up(3)
    assert (len(cuda.graphs), cuda.launches) == (2, 2)
    for count in (2, 3):
        engine.infer({"tiles": tiles(count)})
    assert (len(cuda.graphs), cuda.launches) == (2, 4)
    # weights, a context for each of two profiles, and tensors of 48 bytes a tile in and 192 out
    assert before == 1000 + 100
    assert engine.memory_bytes() == 1000 + 100 + 200 + (2 + 4) * (48 + 192)


def test_a_warm_plan_of_an_aggregator_has_all_contexts(graphs: Path) -> None:  # noqa: F811
    engine = open_engine(graphs / "aggregator.onnx", FakeCuda())
    engine.warm_up(20)
    assert [len(sessions) for sessions in engine._idle.values()] == [1, 1]
    engine.infer(bag(20, 40))
    assert [len(sessions) for sessions in engine._idle.values()] == [1, 1]


def test_sizes_that_torch_records() -> None:
    pytest.importorskip("torch")
    from cmamil_sdk.engines.torch_batches import sizes_up_to

    assert [sizes_up_to(rows) for rows in (1, 8, 9, 128, 500)] == [
        [8],
        [8],
        [8, 32],
        [8, 32, 64, 128],
        [8, 32, 64, 128],
    ]
