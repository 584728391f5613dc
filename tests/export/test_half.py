"""Graphs in mixed float16: what is computed in half, what is not, and that it comes out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.graphs import PRECISION_KEY, graph_in  # noqa: E402
from cmamil_sdk.engines.parity import measure_encoder  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported, EngineMissing  # noqa: E402
from cmamil_sdk.export.half import write_half  # noqa: E402
from cmamil_sdk.export.reference import make_reference  # noqa: E402

from .small_encoder import PX, small_encoder, write_small_graph  # noqa: E402


def in_half(path: Path) -> list[str]:
    """Operators that take float16, in order, without the casts."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    ports = (*graph.input, *graph.output, *graph.value_info)
    kinds = {port.name: port.type.tensor_type.elem_type for port in ports}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return [
        node.op_type
        for node in graph.node
        if node.op_type != "Cast" and TensorProto.FLOAT16 in [kinds.get(n) for n in node.input]
    ]


@pytest.mark.parametrize("network_px", [None, 24])
def test_an_encoder(tmp_path: Path, network_px: int | None) -> None:
    graph = write_small_graph(tmp_path, network_px=network_px)
    half = graph_in(graph, "fp16")
    write_half(graph, half)
    assert half.name == "encoder.fp16.onnx"
    assert half.stat().st_size < 0.8 * graph.stat().st_size
    ops = in_half(half)
    assert ops.count("Conv") == 2
    assert ops.count("Gemm") + ops.count("MatMul") == 1, "the layer, and no resizing"
    assert "Add" in ops and "Div" not in ops and "ReduceMean" not in ops
    model = onnx.load(half)
    assert [p.type.tensor_type.elem_type for p in model.graph.input] == [TensorProto.UINT8]
    assert [p.type.tensor_type.elem_type for p in model.graph.output] == [TensorProto.FLOAT]
    assert {p.key: p.value for p in model.metadata_props}[PRECISION_KEY] == "fp16"
    engine = load_engine(graph, device="cpu", precision="fp16")
    assert engine.info.label == "onnxruntime-cpu-fp16"
    assert "slower than fp32" in engine.info.reason
    parity = measure_encoder(engine, make_reference(small_encoder(network_px=network_px), PX))
    assert parity.passed
    assert parity.cosine_worst < 1 - 1e-9, "it is not the graph in fp32"


def save(path: Path, nodes: list[Any], constants: dict[str, np.ndarray]) -> Path:
    """``x [n, 64]`` -> ``y``, through nodes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def answers(path: Path, precision: str) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    engine = load_engine(path, engine="onnxruntime", device="cpu", precision=precision)
    return engine.infer({"x": x})["y"]


def test_attention_keeps_softmax_masks_and_what_it_weighs(tmp_path: Path) -> None:
    path = save(
        tmp_path / "aggregator.onnx",
        [
            helper.make_node("Gemm", ["x", "w"], ["values"]),
            helper.make_node("Tanh", ["values"], ["gate"]),
            helper.make_node("MatMul", ["gate", "narrow"], ["scores"]),
            helper.make_node("Add", ["scores", "hidden"], ["masked"]),
            helper.make_node("Transpose", ["masked"], ["row"], perm=[1, 0]),
            helper.make_node("Softmax", ["row"], ["attention"], axis=-1),
            helper.make_node("MatMul", ["attention", "values"], ["y"]),
        ],
        {"w": weights(64, 64), "narrow": weights(64, 1), "hidden": np.float32([-1e9])},
    )
    write_half(path, graph_in(path, "fp16"))
    assert in_half(graph_in(path, "fp16")) == ["Gemm", "Tanh"]
    np.testing.assert_allclose(answers(path, "fp16"), answers(path, "fp32"), atol=2e-3)


def test_a_wide_layer_on_weights_of_tiles_stays(tmp_path: Path) -> None:
    path = save(
        tmp_path / "aggregator.onnx",
        [
            helper.make_node("Gemm", ["x", "w"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["attention"], axis=0),
            helper.make_node("MatMul", ["attention", "spread"], ["y"]),
        ],
        {"w": weights(64, 64), "spread": np.eye(64, dtype=np.float32)},
    )
    write_half(path, graph_in(path, "fp16"))
    assert in_half(graph_in(path, "fp16")) == ["Gemm"]


def test_shares_of_tiles_among_many_classes_stay(tmp_path: Path) -> None:
    """As CMA-MIL weighs its heads' answers: half of a share of a large bag would have few digits."""
    path = save(
        tmp_path / "aggregator.onnx",
        [
            helper.make_node("Gemm", ["x", "w"], ["answers"]),
            helper.make_node("MatMul", ["x", "narrow"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["attention"], axis=0),
            helper.make_node("MatMul", ["attention", "spread"], ["weights"]),
            helper.make_node("Mul", ["weights", "answers"], ["shares"]),
            helper.make_node("MatMul", ["shares", "add_up"], ["y"]),
        ],
        {
            "w": weights(64, 64),
            "narrow": weights(64, 2),
            "spread": np.eye(2, dtype=np.float32).repeat(32, axis=1),
            "add_up": np.tile(np.eye(32, dtype=np.float32), (2, 1)),
        },
    )
    write_half(path, graph_in(path, "fp16"))
    assert in_half(graph_in(path, "fp16")) == ["Gemm"]


def test_weights_that_half_cannot_hold_stay(tmp_path: Path) -> None:
    path = save(
        tmp_path / "e.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": 1e6 * weights(64, 64)},
    )
    write_half(path, graph_in(path, "fp16"))
    assert in_half(graph_in(path, "fp16")) == []
    np.testing.assert_array_equal(answers(path, "fp16"), answers(path, "fp32"))


def test_what_a_subgraph_takes_from_outside(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> Any:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["inner"], [name])], name, [], [out])

    path = save(
        tmp_path / "e.onnx",
        [
            helper.make_node("Gemm", ["x", "w"], ["inner"]),
            helper.make_node(
                "If", ["yes"], ["y"], then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")
            ),
        ],
        {"w": weights(64, 64), "yes": np.array(True)},
    )
    write_half(path, graph_in(path, "fp16"))
    np.testing.assert_allclose(answers(path, "fp16"), answers(path, "fp32"), atol=2e-2)
    assert (answers(path, "fp16") != answers(path, "fp32")).any()


def test_a_graph_that_is_missing_or_another(tmp_path: Path) -> None:
    graph = write_small_graph(tmp_path)
    with pytest.raises(EngineMissing, match=r"encoder\.fp16\.onnx.*--precision fp16"):
        load_engine(graph, precision="fp16")
    graph_in(graph, "fp16").write_bytes(graph.read_bytes())
    with pytest.raises(BundleUnsupported, match="a graph in fp32, not in fp16"):
        load_engine(graph, precision="fp16")
    write_half(graph, graph_in(graph, "fp16"))
    with pytest.raises(EngineMissing, match="openvino computes in fp16 on no processor"):
        load_engine(graph, engine="openvino", precision="fp16")
