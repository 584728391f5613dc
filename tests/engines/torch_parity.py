"""Whether torch runs an encoder's graph as onnxruntime does, and as a GPU could."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.torch_graph import TorchGraph


def assert_torch_is_onnxruntime(graph: Path, tiles: np.ndarray) -> None:
    engine = load_engine(graph, engine="torch", device="cpu")
    theirs = load_engine(graph, engine="onnxruntime", device="cpu")
    for n in (1, 2, len(tiles)):
        got = engine.infer({"tiles": tiles[:n]})["features"]
        expected = theirs.infer({"tiles": tiles[:n]})["features"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def assert_looks_at_nothing_on_a_device(graph: Path) -> None:
    """On the device that holds no values, whatever looks at one fails; so would a CUDA graph."""
    meta = torch.device("meta")
    on_meta = TorchGraph(graph, meta, torch.float32)
    (spec,) = on_meta.inputs.values()
    tiles = torch.empty((8, *spec.shape[1:]), dtype=torch.uint8, device=meta)
    (features,) = on_meta({"tiles": tiles}).values()
    assert features.device == meta and features.shape[0] == 8
