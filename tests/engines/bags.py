"""A small aggregator of two scales: wide features, an index, a softmax over tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .graphs import save_graph

WIDTH = 256
"""Of features."""


def save_aggregator(path: Path, *, width: int = WIDTH) -> Path:
    """Fine tiles ``[n, width]`` look at coarse ones ``[m, width]`` by ``ancestor [n, 1]``.

    Its parts for bf16 lie beside it, if it is wide enough.
    """
    from cmamil_sdk.export.split import write_split

    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    constants = {
        "mean": rng.normal(size=width),
        "scale": rng.uniform(0.5, 2, width),
        "low": np.array(-2.0),
        "high": np.array(2.0),
        "fine_weight": rng.normal(size=(16, width)) / np.sqrt(width),
        "fine_bias": rng.normal(size=16),
        "coarse_weight": rng.normal(size=(width, 16)) / np.sqrt(width),
        "coarse_bias": rng.normal(size=16),
        "score": rng.normal(size=(16, 1)) / 4,
        "classes": rng.normal(size=(16, 3)) / 4,
    }
    steps = [
        ("Sub", ["fine", "mean"], ["centred"], {}),
        ("Mul", ["centred", "scale"], ["scaled"], {}),
        ("Clip", ["scaled", "low", "high"], ["clipped"], {}),
        ("Gemm", ["clipped", "fine_weight", "fine_bias"], ["fine_product"], {"transB": 1}),
        ("Relu", ["fine_product"], ["own"], {}),
        ("MatMul", ["coarse", "coarse_weight"], ["coarse_product"], {}),
        ("Add", ["coarse_product", "coarse_bias"], ["coarse_sum"], {}),
        ("Gather", ["coarse_sum", "ancestor"], ["found"], {"axis": 0}),
        ("Squeeze", ["found", "one"], ["above"], {}),
        ("Add", ["own", "above"], ["tiles"], {}),
        ("MatMul", ["tiles", "score"], ["scores"], {}),
        ("Softmax", ["scores"], ["attention"], {"axis": 0}),
        ("MatMul", ["tiles", "classes"], ["answers"], {}),
        ("Mul", ["attention", "answers"], ["contribution"], {}),
        ("ReduceSum", ["contribution", "zero"], ["logits"], {"keepdims": 1}),
    ]
    given = [
        ("Constant", [], [name], {"value": onnx.numpy_helper.from_array(value.astype(np.float32))})
        for name, value in constants.items()
    ]
    axes = [
        ("Constant", [], [name], {"value_ints": [axis]}) for name, axis in (("zero", 0), ("one", 1))
    ]
    save_graph(
        path,
        [*given, *axes, *steps],
        {
            "fine": ("FLOAT", ["n", width]),
            "coarse": ("FLOAT", ["m", width]),
            "ancestor": ("INT64", ["n", 1]),
        },
        {
            "logits": ("FLOAT", [1, 3]),
            "attention": ("FLOAT", ["n", 1]),
            "contribution": ("FLOAT", ["n", 3]),
        },
    )
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    write_split(path)
    return path


def draw_bag(n: int = 70, m: int = 9, *, width: int = WIDTH) -> dict[str, np.ndarray]:
    """Inputs of :func:`save_aggregator`."""
    rng = np.random.default_rng(n)
    return {
        "fine": rng.normal(size=(n, width)).astype(np.float32),
        "coarse": rng.normal(size=(m, width)).astype(np.float32),
        "ancestor": rng.integers(0, m, (n, 1)),
    }
