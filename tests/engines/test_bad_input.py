"""Bad input to a bundle's own graphs: each engine refuses it alike, and then answers as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.bundle.golden import read_golden
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid

from .graphs import save_graph

Inputs = dict[str, Any]
ENGINES = ("onnxruntime", "openvino", "torch")


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path):
    return read_golden(tiny_bundle, read_manifest(tiny_bundle)[0])


def check(graph: Path, engine: str, good: Inputs, bad: dict[str, Inputs]) -> None:
    pytest.importorskip(engine)
    loaded = load_engine(graph, engine=engine, device="cpu", callers=1)
    before = loaded.infer(good)
    for what, inputs in bad.items():
        with pytest.raises(FieldInvalid) as refused:
            loaded.infer(inputs)
        assert graph.name in str(refused.value), what
        for name, values in loaded.infer(good).items():
            np.testing.assert_array_equal(values, before[name], err_msg=f"after {what}")
    loaded.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_tiles(tiny_bundle: Path, golden, engine: str) -> None:
    tiles = golden.encoder.tiles[:2]
    bad: dict[str, Inputs] = {
        "wrong width": {"tiles": tiles[:, :, :200]},
        "wrong dtype": {"tiles": tiles.astype(np.float32)},
        "one tile, no batch": {"tiles": tiles[0]},
        "channels first": {"tiles": tiles.transpose(0, 3, 1, 2)},
        "zero tiles": {"tiles": tiles[:0]},
        "another name": {"images": tiles},
        "nothing": {},
    }
    check(tiny_bundle / "encoder.onnx", engine, {"tiles": tiles}, bad)


def test_bags(tiny_bundle: Path, golden) -> None:
    """Aggregators run on onnxruntime; NaN and the limit of tiles are the bundle's to refuse."""
    good = golden.inputs

    def changed(name: str, change: Callable[[Any], Any]) -> Inputs:
        return good | {name: change(good[name])}

    bad = {
        "wrong width": changed("features_20x", lambda a: a[:, :512].copy()),
        "wrong dtype": changed("features_5x", lambda a: a.astype(np.float16)),
        "zero tiles": changed("features_20x", lambda a: a[:0]),
        "fewer tiles than rows of the grid": changed("features_5x", lambda a: a[:-1]),
        "index beyond the features": changed("children_10x", lambda a: np.full_like(a, 10**6)),
        "index of another type": changed("ancestor_20x", lambda a: a.astype(np.int32)),
        "no grid": {name: a for name, a in good.items() if name.startswith("features")},
    }
    check(tiny_bundle / "aggregator.onnx", "onnxruntime", good, bad)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_not_ours(tmp_path: Path, engine: str) -> None:
    """No graph, an operator from the future, and inputs of a type that no model has."""
    pytest.importorskip(engine)
    (tmp_path / "text.onnx").write_text("not a graph" * 20)
    square = {"y": ("FLOAT", ["n", 4])}
    save_graph(
        tmp_path / "future.onnx",
        [("FromTheFuture", ["x"], ["y"], {})],
        {"x": ("FLOAT", ["n", 4])},
        square,
    )
    save_graph(
        tmp_path / "double.onnx",
        [("Cast", ["x"], ["y"], {"to": 1})],
        {"x": ("DOUBLE", ["n", 4])},
        square,
    )
    for name in ("text", "future", "double"):
        graph = tmp_path / f"{name}.onnx"
        with pytest.raises(BundleUnsupported, match=rf"{name}\.onnx"):
            load_engine(graph, engine=engine, device="cpu")
