"""A tile's features in OpenVINO are the same bits in a call of any size, whatever the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines import openvino as module
from cmamil_sdk.engines.graphs import graph_in
from cmamil_sdk.engines.openvino import precisions

from .networks import GATED, POOLED, RESIDUAL, SHUFFLED, save_network

PX = 40
CALLS = range(1, 41)

BLOCKS = {"pooled": POOLED, "gated": GATED, "residual": RESIDUAL, "shuffled": SHUFFLED}
NETWORKS = ("shufflenet_v2_x1_0", "efficientnet_lite0", "timm:resnet18", "timm:test_resnet")


def some_tiles(n: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def assert_same_in_any_call(graph: Path, precision: str, px: int, calls=CALLS) -> None:
    if precision not in precisions():
        pytest.skip(f"this processor has no {precision} arithmetic")
    if precision == "int8":
        quantize = pytest.importorskip("cmamil_sdk.export.quantize")
        quantize.write_int8(graph, graph_in(graph, "int8"), some_tiles(4, px))
    engine = load_engine(graph, engine="openvino", precision=precision, callers=1)
    assert (engine.info.precision, engine.info.reason) == (precision, "asked for")
    tiles = some_tiles(max(calls), px)
    alone = np.concatenate([engine.infer({"tiles": tile[None]})["features"] for tile in tiles])
    for n in calls:
        assert (engine.infer({"tiles": tiles[-n:]})["features"] == alone[-n:]).all(), n
    engine.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("block", BLOCKS)
def test_small_networks(tmp_path, block, precision):
    path = save_network(tmp_path / "graph.onnx", BLOCKS[block], px=PX)
    assert_same_in_any_call(path, precision, PX)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_large_maps(tmp_path, precision):
    """Those that are computed tile by tile."""
    path = save_network(tmp_path / "graph.onnx", POOLED, px=224)
    assert_same_in_any_call(path, precision, 224, calls=(3, 16, 21))


@pytest.mark.parametrize("row", [0, 2, -1])
def test_other_bits_in_a_form_are_found_and_every_tile_is_computed_alone(
    tmp_path, monkeypatch, row
):
    """As on a processor whose kernels for one tile and for several differ, in whichever row."""
    graph = save_network(tmp_path / "graph.onnx", GATED, px=PX)
    expected = load_engine(graph, engine="openvino", callers=1).infer({"tiles": some_tiles(21, PX)})
    forms_of = module.forms_of

    def differing(model, bytes_per_number):
        several, *fewer = forms_of(model, bytes_per_number)
        [features] = several.get_results()
        factors = np.ones((several.input().get_shape()[0], 1), np.float32)
        factors[row] = 2
        scaled = module.ov.opset13.multiply(features.input_value(0), factors)
        features.input(0).replace_source_output(scaled.output(0))
        return [several, *fewer]

    monkeypatch.setattr(module, "forms_of", differing)
    engine = load_engine(graph, engine="openvino", callers=1)
    assert engine.info.reason == (
        "asked for; tile by tile, as tiles beside it change a tile's bits here"
    )
    got = engine.infer({"tiles": some_tiles(21, PX)})
    assert (got["features"] == expected["features"]).all()


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_encoders(tmp_path, shufflenet_weights, name, precision):
    torch = pytest.importorskip("torch")
    from cmamil_sdk.encoders.torchvision_ops import import_torchvision
    from cmamil_sdk.export.encoder import load_encoder

    weights = shufflenet_weights if name.startswith("shufflenet") else None
    if name.startswith("timm:"):
        import_torchvision()
        timm = pytest.importorskip("timm")
        weights = tmp_path / "weights.pth"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(timm.create_model(name.removeprefix("timm:")).state_dict(), weights)
    encoder = load_encoder(name, weights)
    encoder.write_graph(tmp_path / "encoder.onnx")
    graph, px = tmp_path / "encoder.onnx", encoder.info.tile_px
    assert_same_in_any_call(graph, precision, px, calls=CALLS[::3])
