"""Every operator that torch runs here, in every form, against onnxruntime's."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.torch_operators import OPERATORS  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported  # noqa: E402

from .graphs import save_graph  # noqa: E402

run_torch = partial(load_engine, engine="torch", device="cpu")


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 1, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X = numbers(2, 6, 9, 8)
FLAT = numbers(3, 7)
SCALE, BIAS = np.abs(numbers(6)) + 0.5, numbers(6)

# operator, constants after the input, attributes, input
CASES = {
    "Conv": (
        "Conv",
        [numbers(4, 6, 3, 3), numbers(4)],
        {"pads": [1, 1, 1, 1], "strides": [2, 1]},
        X,
    ),
    "Conv of groups": ("Conv", [numbers(6, 1, 3, 2)], {"group": 6, "dilations": [2, 1]}, X),
    "Conv with odd pads": ("Conv", [numbers(4, 6, 3, 3)], {"pads": [0, 1, 2, 0]}, X),
    "Conv SAME_UPPER": (
        "Conv",
        [numbers(4, 6, 3, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        X,
    ),
    "Conv SAME_LOWER": (
        "Conv",
        [numbers(4, 6, 4, 4)],
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        X,
    ),
    "Conv of one axis": ("Conv", [numbers(4, 6, 3)], {"pads": [1, 1]}, numbers(2, 6, 9)),
    "MaxPool": (
        "MaxPool",
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        X,
    ),
    "MaxPool with odd pads": ("MaxPool", [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, X),
    "MaxPool upwards": (
        "MaxPool",
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        X,
    ),
    "AveragePool": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        X,
    ),
    "AveragePool with pads": (
        "AveragePool",
        [],
        {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1},
        X,
    ),
    "GlobalAveragePool": ("GlobalAveragePool", [], {}, X),
    "GlobalMaxPool": ("GlobalMaxPool", [], {}, X),
    "BatchNormalization": (
        "BatchNormalization",
        [SCALE, BIAS, numbers(6), SCALE[::-1].copy()],
        {"epsilon": 1e-3},
        X,
    ),
    "InstanceNormalization": ("InstanceNormalization", [SCALE, BIAS], {"epsilon": 1e-3}, X),
    "GroupNormalization": (
        "GroupNormalization",
        [SCALE[:3], BIAS[:3]],
        {"num_groups": 3},
        X,
    ),
    "LayerNormalization": ("LayerNormalization", [numbers(7), numbers(7)], {}, FLAT),
    "LayerNormalization of two axes": ("LayerNormalization", [numbers(9, 8)], {"axis": 2}, X),
    "Softmax": ("Softmax", [], {}, FLAT),
    "Softmax of an axis": ("Softmax", [], {"axis": 1}, X),
    "Gemm": ("Gemm", [numbers(7, 4), numbers(4)], {"alpha": 0.5, "beta": 2.0}, FLAT),
    "Gemm transposed": ("Gemm", [numbers(4, 7)], {"transB": 1}, FLAT),
    "MatMul": ("MatMul", [numbers(8, 5)], {}, X),
    "Einsum": ("Einsum", [numbers(7, 4)], {"equation": "ij,jk->ik"}, FLAT),
    "Clip": ("Clip", [np.float32(-0.5), np.float32(0.7)], {}, X),
    "Clip below": ("Clip", [np.float32(-0.5)], {}, X),
    "Gelu": ("Gelu", [], {}, X),
    "Gelu by tanh": ("Gelu", [], {"approximate": "tanh"}, X),
    "HardSigmoid": ("HardSigmoid", [], {"alpha": 0.3}, X),
    "PRelu": ("PRelu", [numbers(6, 1, 1)], {}, X),
    "LeakyRelu": ("LeakyRelu", [], {"alpha": 0.2}, X),
    "Elu": ("Elu", [], {"alpha": 1.5}, X),
    "Add": ("Add", [numbers(8)], {}, X),
    "Sub": ("Sub", [numbers(8)], {}, X),
    "Mul": ("Mul", [numbers(9, 1)], {}, X),
    "Div": ("Div", [numbers(9, 1) + 3], {}, X),
    "Pow": ("Pow", [np.float32(2.0)], {}, X),
    "Max": ("Max", [numbers(8), np.float32(0.1)], {}, X),
    "Min": ("Min", [numbers(8)], {}, X),
    "Sum": ("Sum", [numbers(8), numbers(9, 1)], {}, X),
    "ReduceMean": ("ReduceMean", [ints(2, 3)], {"keepdims": 0}, X),
    "ReduceMean of all": ("ReduceMean", [], {}, X),
    "ReduceMean of none": ("ReduceMean", [], {"noop_with_empty_axes": 1}, X),
    "ReduceSum": ("ReduceSum", [ints(-1)], {}, X),
    "ReduceMax": ("ReduceMax", [ints(1)], {}, X),
    "ReduceMin": ("ReduceMin", [ints(1, 2)], {}, X),
    "ReduceL2": ("ReduceL2", [ints(1)], {}, X),
    "Reshape": ("Reshape", [ints(0, 3, 2, -1)], {}, X),
    "Flatten": ("Flatten", [], {"axis": 2}, X),
    "Transpose": ("Transpose", [], {"perm": [0, 2, 3, 1]}, X),
    "Transpose reversed": ("Transpose", [], {}, X),
    "Slice": ("Slice", [ints(1, -5), ints(2**62, -1), ints(1, 3), ints(2, 1)], {}, X),
    "Gather": ("Gather", [np.array([[0, -1], [2, 1]])], {"axis": 1}, X),
    "Gather one": ("Gather", [np.array(-2)], {"axis": 3}, X),
    "Squeeze": ("Squeeze", [ints(1)], {}, numbers(3, 1, 4, 1)),
    "Unsqueeze": ("Unsqueeze", [ints(0, -1)], {}, FLAT),
    "Expand": ("Expand", [ints(2, 1, 7)], {}, FLAT),
    "Tile": ("Tile", [ints(2, 1)], {}, FLAT),
    "Pad": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)], {}, X),
    "Pad reflected": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}, X),
    "Pad by the edge": ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}, X),
    "DepthToSpace": ("DepthToSpace", [], {"mode": "CRD", "blocksize": 2}, numbers(1, 8, 3, 4)),
}
PLAIN = (
    *("Abs", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Reciprocal"),
    *("Relu", "Sigmoid", "Sin", "Softplus", "Tanh", "Dropout"),
)
CASES |= {name: (name, [], {}, X) for name in PLAIN}
CASES |= {name: (name, [], {}, np.abs(X) + 0.1) for name in ("Log", "Sqrt")}
# Several outputs, other types, or a shape that is computed: (nodes, constants)
ANTIALIASED = {"antialias": 1, "exclude_outside": 1}
LONGER = {
    "Resize": (
        [
            ("Resize", ["x", "", "", "c0"], ["a"], {"mode": "linear", **ANTIALIASED}),
            (
                "Resize",
                ["a", "", "", "c1"],
                ["y"],
                {"mode": "cubic", "cubic_coeff_a": -0.5, **ANTIALIASED},
            ),
        ],
        [ints(2, 6, 5, 6), ints(2, 6, 7, 4)],
    ),
    "Split": (
        [
            ("Split", ["x", "c0"], ["a", "b"], {"axis": 1}),
            ("Concat", ["b", "a"], ["y"], {"axis": 1}),
        ],
        [ints(2, 4)],
    ),
    "Split evenly": (
        [
            ("Split", ["x"], ["a", "b", "c"], {"axis": 2, "num_outputs": 3}),
            ("Concat", ["b", "a", "c"], ["y"], {"axis": 2}),
        ],
        [],
    ),
    "Where": (
        [("Less", ["x", "c0"], ["l"], {}), ("Where", ["l", "c0", "x"], ["y"], {})],
        [np.float32(0.2)],
    ),
    "comparisons": (
        [
            ("Greater", ["x", "c0"], ["a"], {}),
            ("GreaterOrEqual", ["x", "c0"], ["b"], {}),
            ("LessOrEqual", ["x", "c0"], ["c"], {}),
            ("Equal", ["x", "c0"], ["d"], {}),
            ("Or", ["a", "d"], ["e"], {}),
            ("And", ["e", "b"], ["f"], {}),
            ("Not", ["c"], ["g"], {}),
            ("Cast", ["f"], ["h"], {"to": 1}),
            ("Cast", ["g"], ["i"], {"to": 1}),
            ("Add", ["h", "i"], ["y"], {}),
        ],
        [np.float32(0.2)],
    ),
    "shapes": (
        [
            ("Shape", ["x"], ["s"], {"start": 0, "end": 2}),
            ("Gather", ["s", "c0"], ["n"], {}),
            ("Mul", ["n", "c1"], ["m"], {}),
            ("Div", ["m", "c1"], ["k"], {}),
            ("Concat", ["k", "c2"], ["t"], {"axis": 0}),
            ("Reshape", ["x", "t"], ["y"], {}),
        ],
        [ints(0), ints(3), ints(6, -1)],
    ),
}


def small_graph(path: Path, nodes, constants, shape) -> Path:
    named = {f"c{n}": np.asarray(value) for n, value in enumerate(constants)}
    save_graph(path, nodes, {"x": ("FLOAT", ["n", *shape[1:]])}, {"y": ("FLOAT", None)})
    model = onnx.load(path)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in named.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("case", [*CASES, *LONGER])
def test_an_operator_is_onnxruntimes(case: str, tmp_path: Path) -> None:
    if case in LONGER:
        (nodes, constants), x = LONGER[case], X
    else:
        name, constants, attributes, x = CASES[case]
        inputs = ["x", *(f"c{n}" for n in range(len(constants)))]
        nodes = [(name, inputs, ["y"], attributes)]
    graph = small_graph(tmp_path / "g.onnx", nodes, constants, x.shape)
    expected = load_engine(graph, engine="onnxruntime", device="cpu").infer({"x": x})["y"]
    got = run_torch(graph).infer({"x": x})["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    tried = {case[0] for case in CASES.values()}
    tried |= {node[0] for nodes, _ in LONGER.values() for node in nodes}
    assert tried == OPERATORS.keys()


def test_operators_that_it_does_not_know(tmp_path: Path) -> None:
    nodes = [("Hardmax", ["x"], ["a"], {}), ("Celu", ["a"], ["y"], {})]
    graph = small_graph(tmp_path / "g.onnx", nodes, [], (2, 3))
    with pytest.raises(BundleUnsupported, match=r"g\.onnx has operators .* \(Celu, Hardmax\); use"):
        run_torch(graph)


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (
            ("Slice", ["x", "c0", "c1", "c2", "c3"], ["y"], {}),
            [ints(5), ints(0), ints(1), ints(-1)],
        ),
        (("Pad", ["x", "c0"], ["y"], {"mode": "wrap"}), [ints(0, 0, 1, 1, 0, 0, 1, 1)]),
        (("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}), []),
        (("DepthToSpace", ["x"], ["y"], {"blocksize": 1}), []),
        (("Resize", ["x", "", "", "c0"], ["y"], {"mode": "linear"}), [ints(2, 6, 5, 6)]),
        (("Cast", ["x"], ["y"], {"to": 8}), []),
        (("Reshape", ["x", "c0"], ["y"], {}), [ints(5, -1)]),
    ],
)
def test_forms_that_it_does_not_know(node, constants, tmp_path: Path) -> None:
    engine = run_torch(small_graph(tmp_path / "g.onnx", [node], constants, X.shape))
    with pytest.raises(BundleUnsupported, match=r"use (another )?--engine"):
        engine.infer({"x": X})
