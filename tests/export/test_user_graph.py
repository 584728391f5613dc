"""A user's own ONNX graph: what it must be, and that it says the same behind our inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch")

from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.parity import measure_encoder
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.export.encoder import export_encoder, load_encoder
from cmamil_sdk.export.reference import probe_tiles
from cmamil_sdk.files import sha256_of_file

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
WEIGHT = np.random.default_rng(0).normal(0, 1, (3, 5)).astype(np.float32)
DEFAULT = object()


def write_graph(
    path: Path,
    *,
    kind: int = TensorProto.FLOAT,
    shape: tuple[Any, ...] = ("n", 3, 32, 32),
    nodes: list[Any] | None = None,
    outputs: tuple[tuple[str, int, list[Any]], ...] = (("out", TensorProto.FLOAT, ["n", 5]),),
    facts: object = DEFAULT,
) -> str:
    """Mean over the image, then a matrix; its names are those of our own graphs."""
    mean = helper.make_node("ReduceMean", ["tiles", "axes"], ["mean"], keepdims=0)
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    weight = numpy_helper.from_array(WEIGHT, "weight")
    graph = helper.make_graph(
        nodes or [mean, helper.make_node("MatMul", ["mean", "weight"], ["out"])],
        "g",
        [helper.make_tensor_value_info("tiles", kind, list(shape))],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [axes, weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    if facts is DEFAULT:
        facts = {"mean": MEAN, "std": STD, "mpp": 0.5}
    if facts is not None:
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
    return f"onnx:{path}"


def expected_of(tiles: np.ndarray) -> np.ndarray:
    images = (tiles.astype(np.float64) - MEAN) / STD
    return images.mean(axis=(1, 2)) @ WEIGHT


def features_of_graph(encoder: Any, folder: Path, tiles: np.ndarray) -> np.ndarray:
    reference = export_encoder(encoder, folder / "encoder.onnx")
    engine = load_engine(folder / "encoder.onnx", device="cpu")
    assert measure_encoder(engine, reference).passed
    return engine.infer({"tiles": tiles})["features"]


def test_the_graph_is_put_behind_uint8_tiles(tmp_path: Path) -> None:
    encoder = load_encoder(write_graph(tmp_path / "mine.onnx"))
    info = encoder.info
    assert (info.id, info.dim, info.tile_px, info.mpp) == ("onnx:mine.onnx", 5, 32, 0.5)
    assert info.weights_sha256 == sha256_of_file(tmp_path / "mine.onnx")
    for count in (1, 7):
        tiles = probe_tiles(32, count=count, seed=count)
        got = features_of_graph(encoder, tmp_path, tiles)
        np.testing.assert_allclose(got, expected_of(tiles), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(encoder.features(tiles), got, rtol=1e-4, atol=1e-4)


def test_larger_tiles_are_resized_in_the_graph(tmp_path: Path) -> None:
    name = write_graph(tmp_path / "mine.onnx")
    with pytest.raises(FieldInvalid, match="--resize-tiles"):
        load_encoder(name, tile_px=64)
    encoder = load_encoder(name, tile_px=64, resize_tiles=True)
    tiles = probe_tiles(64, count=3)
    got = features_of_graph(encoder, tmp_path, tiles)
    # halving keeps the mean colour but for the edges, where the filter ends
    np.testing.assert_allclose(got, expected_of(tiles), atol=0.05)


def test_a_graph_for_images_of_any_size_is_told_its_tiles(tmp_path: Path) -> None:
    name = write_graph(tmp_path / "any.onnx", shape=("n", 3, "h", "w"))
    with pytest.raises(FieldInvalid, match="any size; say which with --tile-px"):
        load_encoder(name)
    encoder = load_encoder(name, tile_px=48)
    assert (encoder.info.tile_px, encoder.info.resize) == (48, None)
    tiles = probe_tiles(48, count=2)
    got = features_of_graph(encoder, tmp_path, tiles)
    np.testing.assert_allclose(got, expected_of(tiles), rtol=1e-3, atol=1e-3)


def uint8_nodes() -> list[Any]:
    return [
        helper.make_node("Cast", ["tiles"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["t", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["out"]),
    ]


def test_a_graph_that_takes_uint8_tiles_needs_no_document(tmp_path: Path) -> None:
    path = tmp_path / "raw.onnx"
    form: dict[str, Any] = {
        "kind": TensorProto.UINT8,
        "shape": ("n", 32, 32, 3),
        "nodes": uint8_nodes(),
    }
    encoder = load_encoder(write_graph(path, **form, facts=None))
    tiles = probe_tiles(32, count=4)
    got = features_of_graph(encoder, tmp_path, tiles)
    np.testing.assert_allclose(got, tiles.mean(axis=(1, 2)) @ WEIGHT, rtol=1e-3)
    with pytest.raises(FieldInvalid, match="uint8 tiles of 32 px alone"):
        load_encoder(f"onnx:{path}", tile_px=64, resize_tiles=True)
    with pytest.raises(FieldInvalid, match="remove mean and std"):
        load_encoder(write_graph(path, **form))


def test_weights_in_a_file_beside_the_graph_count(tmp_path: Path) -> None:
    write_graph(tmp_path / "mine.onnx")
    model = onnx.load(tmp_path / "mine.onnx")
    onnx.save(
        model, tmp_path / "mine.onnx", save_as_external_data=True, location="w", size_threshold=50
    )
    encoder = load_encoder(f"onnx:{tmp_path / 'mine.onnx'}")
    tiles = probe_tiles(32, count=2)
    got = features_of_graph(encoder, tmp_path, tiles)
    np.testing.assert_allclose(got, expected_of(tiles), rtol=1e-3, atol=1e-3)
    weights = np.fromfile(tmp_path / "w", np.float32)
    (weights * 2).tofile(tmp_path / "w")
    assert load_encoder(f"onnx:{tmp_path / 'mine.onnx'}").info != encoder.info


def test_another_file_stands_for_the_one_that_was_named(tmp_path: Path) -> None:
    write_graph(tmp_path / "copy.onnx")
    info = load_encoder("onnx:somewhere/mine.onnx", tmp_path / "copy.onnx").info
    assert info.id == "onnx:mine.onnx"


FLAT = [("out", TensorProto.FLOAT, ["n", 5])]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (4, 3, 32, 32)}, "batches of 4 alone"),
        ({"shape": ("n", 3, 32, 48)}, "48 x 32 px"),
        ({"shape": ("n", 1, 32, 32)}, r"takes float\[n, 1, 32, 32\]"),
        ({"kind": TensorProto.FLOAT16}, "takes float16"),
        (
            {"outputs": (*FLAT, ("mean", TensorProto.FLOAT, ["n", 3]))},
            "1 inputs and 2 outputs",
        ),
        ({"outputs": (("out", TensorProto.FLOAT, ["n", 5, 1]),)}, r"gives float\[n, 5, 1\]"),
        ({"shape": ("n", 3, 8, 8)}, "takes images of 8 px, and tiles have 16 to 4096"),
        (
            {
                "nodes": [
                    helper.make_node("ReduceMean", ["tiles", "axes"], ["mean"], keepdims=0),
                    helper.make_node("MatMul", ["mean", "weight"], ["each"]),
                    helper.make_node("Sub", ["each", "each"], ["zero"]),
                    helper.make_node("Div", ["zero", "zero"], ["out"]),
                ]
            },
            "gives NaN or infinity",
        ),
        ({"facts": None}, r"write mine\.onnx\.json beside it"),
        ({"facts": {"mpp": 0.5}}, "give mean and std"),
        ({"facts": {"mean": MEAN}}, "belong together"),
        ({"facts": {"mean": [0.5] * 3, "std": [0.2] * 3}}, "multiply them by 255"),
        ({"facts": {"mean": MEAN, "std": [0.0, 1.0, 2.0]}}, "std must be above 0"),
        ({"facts": {"mean": MEAN, "std": STD, "mp": 1}}, "did you mean 'mpp'"),
        ({"facts": [1]}, "is no JSON document"),
        (
            {
                "nodes": [
                    helper.make_node("ReduceMean", ["tiles", "axes"], ["mean"], keepdims=0),
                    helper.make_node("MatMul", ["mean", "weight"], ["each"]),
                    helper.make_node("ReduceMean", ["each"], ["all"], keepdims=1),
                    helper.make_node("Add", ["each", "all"], ["out"]),
                ]
            },
            "other features in another batch",
        ),
    ],
)
def test_graphs_that_are_no_encoders(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FieldInvalid, match=words):
        load_encoder(write_graph(tmp_path / "mine.onnx", **changes))


def test_a_small_graph_takes_tiles_that_are_resized(tmp_path: Path) -> None:
    name = write_graph(tmp_path / "mine.onnx", shape=("n", 3, 8, 8))
    encoder = load_encoder(name, tile_px=32, resize_tiles=True)
    assert encoder.info.tile_px == 32
    assert encoder.features(probe_tiles(32, count=2)).shape == (2, 5)


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(FieldInvalid, match=f"{name} is no ONNX graph"):
            load_encoder(f"onnx:{tmp_path / name}")
