"""Encoders in int8: which layers are quantised, and that both engines compute them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.choose import engine_precisions  # noqa: E402
from cmamil_sdk.engines.graphs import graph_in  # noqa: E402
from cmamil_sdk.engines.parity import measure_encoder  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported, EngineMissing  # noqa: E402
from cmamil_sdk.export.quantize import write_int8  # noqa: E402
from cmamil_sdk.export.reference import gate_tiles, make_reference, probe_tiles  # noqa: E402

from .small_encoder import PX, small_encoder, write_small_graph  # noqa: E402


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_small_graph(tmp_path_factory.mktemp("int8"), network_px=24)
    tiles = np.concatenate([gate_tiles(PX), probe_tiles(PX, count=9, seed=1)])
    write_int8(path, graph_in(path, "int8"), tiles)
    return path


def test_weights_are_signed_and_per_channel_activations_unsigned(graph: Path) -> None:
    model = onnx.load(graph_in(graph, "int8")).graph
    constants = {tensor.name: tensor for tensor in model.initializer}
    made = {name: node for node in model.node for name in node.output}
    layers = [node for node in model.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    quantised = [n for n in layers if made.get(n.input[1], n).op_type == "DequantizeLinear"]
    assert sorted(node.op_type for node in quantised).count("Conv") == 2
    assert len(quantised) == 3
    for node in quantised:
        activation, weight = (made[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert constants[activation.input[2]].data_type == onnx.TensorProto.UINT8
        assert constants[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert constants[weight.input[1]].dims[0] in (40, 48), "a scale for each channel"
    assert len(layers) == 5, "both resizing products are left as they are"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_both_engines_compute_it_in_int8(graph: Path, engine: str) -> None:
    if "int8" not in engine_precisions(engine):
        pytest.skip(f"{engine} has no int8 on this processor")
    loaded = load_engine(graph, engine=engine, device="cpu", precision="int8")
    assert loaded.info.label == f"{engine}-cpu-int8"
    parity = measure_encoder(loaded, make_reference(small_encoder(network_px=24), PX))
    assert parity.passed
    assert parity.cosine_worst < 0.999999, "it is not the graph in fp32"
    loaded.close()


def test_what_does_not_compute_it(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="int8 runs on CPUs"):
        load_engine(graph, engine="onnxruntime", device="cuda:0", precision="int8")
    plain = write_small_graph(tmp_path)
    graph_in(plain, "int8").write_bytes(plain.read_bytes())
    with pytest.raises(BundleUnsupported, match="a graph in fp32, not in int8"):
        load_engine(plain, engine="onnxruntime", device="cpu", precision="int8")
    with pytest.raises(EngineMissing, match="in fp32 here and not in int8"):
        load_engine(plain, engine="openvino", device="cpu", precision="int8")
