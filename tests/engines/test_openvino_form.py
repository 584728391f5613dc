"""The forms of an encoder for so many tiles each: which graphs have them, and what they look like."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cmamil_sdk.engines.openvino_form import forms_of, has_form

from .graphs import save_graph
from .networks import GATED, POOLED, save_network

PX = 224


ATTENDING = [("Softmax", ["y"], ["z"], {"axis": 1})]


def read(path: Path):
    import openvino

    return openvino.Core().read_model(path)


def operators(path: Path) -> list[str]:
    return [node.get_type_name() for node in forms_of(read(path), 2)[0].get_ordered_ops()]


def test_large_maps_are_computed_tile_by_tile_and_nothing_is_moved(tmp_path):
    found = operators(save_network(tmp_path / "graph.onnx", POOLED))
    counts = Counter(found)
    assert (counts["Split"], counts["MaxPool"]) == (1, 16)
    assert counts["Convolution"] == 16 + 1
    assert found.index("Divide") < found.index("Transpose")


def test_small_maps_are_computed_together(tmp_path):
    counts = Counter(operators(save_network(tmp_path / "graph.onnx", POOLED, px=64)))
    assert (counts["Split"], counts["Convolution"]) == (0, 2)


def test_no_layer_is_cut_from_its_activation(tmp_path):
    counts = Counter(operators(save_network(tmp_path / "graph.onnx", GATED)))
    assert (counts["Split"], counts["Convolution"]) == (0, 1)


def test_there_are_forms_for_what_is_left_of_a_call(tmp_path):
    def tiles_of(px: int, bytes_per_number: int) -> list[int]:
        path = save_network(tmp_path / f"{px}.onnx", GATED, px=px)
        return [form.input().get_shape()[0] for form in forms_of(read(path), bytes_per_number)]

    assert tiles_of(64, 2) == [16, 4, 1]
    assert tiles_of(448, 2) == [2, 1], "so that maps stay in the cache"
    assert tiles_of(1024, 4) == [1]


def test_graphs_that_are_left_as_they_are(tmp_path):
    attention = save_network(tmp_path / "attention.onnx", ATTENDING)
    assert not has_form(read(attention))
    floats = save_network(tmp_path / "floats.onnx", POOLED, tiles="FLOAT")
    assert not has_form(read(floats))
    for shape in ([3, PX, PX, 3], [-1, -1, PX, 3]):
        model = read(save_network(tmp_path / "graph.onnx", POOLED))
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
