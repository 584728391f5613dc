"""Small networks of the kinds that encoders are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .graphs import save_graph

RNG = np.random.default_rng(1)


def constant(name: str, values) -> tuple:
    """A node that gives ``values`` in float32."""
    onnx = pytest.importorskip("onnx")
    array = np.asarray(values, np.float32)
    return ("Constant", [], [name], {"value": onnx.numpy_helper.from_array(array)})


def save_network(
    path: Path, behind_conv: list[tuple], *, px: int = 224, tiles: str = "UINT8"
) -> Path:
    """Normalisation, a convolution of stride 2, ``behind_conv`` from ``y`` to ``z``, and means.

    Maps ``y`` and ``z`` have 16 channels.
    """
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
    constant("weight2", RNG.normal(size=(16, 16, 1, 1))),
    ("Conv", ["p", "weight2"], ["z"], {}),
]
GATED = [("Sigmoid", ["y"], ["s"], {}), ("Mul", ["y", "s"], ["z"], {})]
RESIDUAL = [
    ("Relu", ["y"], ["r"], {}),
    constant("weight2", RNG.normal(size=(16, 16, 3, 3))),
    ("Conv", ["r", "weight2"], ["c"], {"pads": [1, 1, 1, 1]}),
    ("Add", ["c", "r"], ["sum"], {}),
    ("Relu", ["sum"], ["z"], {}),
]
SHUFFLED = [
    ("Split", ["y"], ["passed", "worked"], {"axis": 1, "num_outputs": 2}),
    constant("weight2", RNG.normal(size=(8, 1, 3, 3))),
    ("Conv", ["worked", "weight2"], ["d"], {"group": 8, "pads": [1, 1, 1, 1]}),
    constant("weight3", RNG.normal(size=(8, 8, 1, 1))),
    ("Conv", ["d", "weight3"], ["c"], {}),
    ("Relu", ["c"], ["done"], {}),
    ("Concat", ["done", "passed"], ["z"], {"axis": 1}),
]
