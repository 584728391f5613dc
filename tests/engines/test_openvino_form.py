"""The form of an encoder for calls of many tiles: same bits, other moves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.openvino import precisions
from cmamil_sdk.engines.openvino_form import forms_of, has_form

from .graphs import save_graph

PX = 224


def constant(name: str, values) -> tuple:
    onnx = pytest.importorskip("onnx")
    array = np.asarray(values, np.float32)
    return ("Constant", [], [name], {"value": onnx.numpy_helper.from_array(array)})


def network(path: Path, behind_conv: list[tuple], *, px: int = PX, tiles: str = "UINT8") -> Path:
    """Normalisation, a convolution of stride 2, ``behind_conv`` from ``y`` to ``z``, and means."""
    rng = np.random.default_rng(0)
    return save_graph(
        path,
        [
            constant("mean", np.reshape([123.0, 116.0, 103.0], (1, 3, 1, 1))),
            constant("std", np.reshape([58.0, 57.0, 56.0], (1, 3, 1, 1))),
            constant("weight", rng.normal(size=(16, 3, 3, 3))),
            constant("bias", rng.normal(size=16)),
            ("Cast", ["tiles"], ["grey"], {"to": 1}),
            ("Transpose", ["grey"], ["first"], {"perm": [0, 3, 1, 2]}),
            ("Sub", ["first", "mean"], ["centred"], {}),
            ("Div", ["centred", "std"], ["x"], {}),
            ("Conv", ["x", "weight", "bias"], ["y"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
            *behind_conv,
            ("Constant", [], ["axes"], {"value_ints": [2, 3]}),
            ("ReduceMean", ["z", "axes"], ["features"], {"keepdims": 0}),
        ],
        {"tiles": (tiles, ["n", px, px, 3])},
        {"features": ("FLOAT", ["n", 16])},
    )


POOLED = [
    ("Relu", ["y"], ["r"], {}),
    ("MaxPool", ["r"], ["p"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
    constant("weight2", np.random.default_rng(1).normal(size=(16, 16, 1, 1))),
    ("Conv", ["p", "weight2"], ["z"], {}),
]
GATED = [("Sigmoid", ["y"], ["s"], {}), ("Mul", ["y", "s"], ["z"], {})]
ATTENDING = [("Softmax", ["y"], ["z"], {"axis": 1})]


def read(path: Path):
    import openvino

    return openvino.Core().read_model(path)


def operators(path: Path) -> list[str]:
    return [node.get_type_name() for node in forms_of(read(path), 2)[0].get_ordered_ops()]


def test_large_maps_are_computed_tile_by_tile_and_nothing_is_moved(tmp_path):
    found = operators(network(tmp_path / "graph.onnx", POOLED))
    counts = Counter(found)
    assert (counts["Split"], counts["MaxPool"]) == (1, 16)
    assert counts["Convolution"] == 16 + 1
    assert found.index("Divide") < found.index("Transpose")


def test_small_maps_are_computed_together(tmp_path):
    counts = Counter(operators(network(tmp_path / "graph.onnx", POOLED, px=64)))
    assert (counts["Split"], counts["Convolution"]) == (0, 2)


def test_no_layer_is_cut_from_its_activation(tmp_path):
    counts = Counter(operators(network(tmp_path / "graph.onnx", GATED)))
    assert (counts["Split"], counts["Convolution"]) == (0, 1)


@pytest.mark.parametrize("behind_conv", [POOLED, GATED], ids=["pooled", "gated"])
@pytest.mark.parametrize("precision", [p for p in precisions() if p != "int8"])
def test_every_tile_has_the_same_bits_in_any_call(tmp_path, behind_conv, precision):
    engine = load_engine(
        network(tmp_path / "graph.onnx", behind_conv), engine="openvino", precision=precision
    )
    tiles = np.random.default_rng(0).integers(0, 256, (19, PX, PX, 3), dtype=np.uint8)
    alone = np.concatenate([engine.infer({"tiles": tile[None]})["features"] for tile in tiles])
    for n in (7, 16, 19):
        assert (engine.infer({"tiles": tiles[:n]})["features"] == alone[:n]).all()


def test_graphs_that_are_left_as_they_are(tmp_path):
    attention = network(tmp_path / "attention.onnx", ATTENDING)
    assert not has_form(read(attention))
    floats = network(tmp_path / "floats.onnx", POOLED, tiles="FLOAT")
    assert not has_form(read(floats))
    for shape in ([3, PX, PX, 3], [-1, -1, PX, 3]):
        model = read(network(tmp_path / "graph.onnx", POOLED))
        model.reshape(shape)
        assert not has_form(model)
    assert has_form(read(tmp_path / "graph.onnx"))


@pytest.mark.parametrize("shape", [None, [], ["n", PX, PX, 3]])
def test_graphs_that_are_no_encoders_load_as_they_are(tmp_path, shape):
    """Of an input without a known rank, a number, and a graph that gives one number for all tiles."""
    path = save_graph(
        tmp_path / "graph.onnx",
        [("Cast", ["tiles"], ["x"], {"to": 1}), ("ReduceMean", ["x"], ["y"], {"keepdims": 0})],
        {"tiles": ("UINT8", shape)},
        {"y": ("FLOAT", [])},
    )
    assert not has_form(read(path))
