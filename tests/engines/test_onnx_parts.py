"""Parts of a graph that are cut out without the onnx package: valid by it, and with the same answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from cmamil_sdk.engines.onnx_parts import OnnxParts, Port  # noqa: E402
from cmamil_sdk.engines.wide_products import takes_bags, wide_products  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported  # noqa: E402

from .bags import WIDTH, draw_bag, save_aggregator  # noqa: E402
from .graphs import save_graph  # noqa: E402


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_aggregator(tmp_path_factory.mktemp("parts") / "aggregator.onnx")


def run(model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_what_is_read(graph: Path) -> None:
    parts = OnnxParts(graph)
    assert parts.inputs == {
        "fine": Port("float32", ("n", WIDTH)),
        "coarse": Port("float32", ("m", WIDTH)),
        "ancestor": Port("int64", ("n", 1)),
    }
    assert list(parts.outputs) == ["logits", "attention", "contribution"]
    assert parts.port("tiles") == Port("float32", ("n", 16))
    assert parts.port("nothing") is None
    assert {"mean", "fine_weight", "zero"} <= parts.constants
    assert "fine" not in parts.constants
    assert parts.steps[-1].operator == "ReduceSum"


def test_parts_answer_as_the_whole(graph: Path) -> None:
    parts, bag = OnnxParts(graph), draw_bag()
    expected = run(graph.read_bytes(), bag)
    cut = {"fine": "fine_product", "coarse": "coarse_sum"}
    made = {}
    for name, product in cut.items():
        part = parts.part([name], [product])
        assert [port.name for port in onnx.load_from_string(part).graph.input] == [name]
        made |= run(part, {name: bag[name]})
    rest = parts.part([*cut.values()], parts.outputs)
    found = run(rest, {**made, "ancestor": bag["ancestor"]})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert "fine_weight" not in str(onnx.load_from_string(rest).graph)


def test_an_input_that_is_used_beside_its_product_stays(graph: Path) -> None:
    rest = OnnxParts(graph).part(["centred"], ["fine_product", "found"])
    names = [port.name for port in onnx.load_from_string(rest).graph.input]
    assert names == ["coarse", "ancestor", "centred"]


def test_what_subgraphs_name_is_kept(tmp_path: Path) -> None:
    branch = [
        onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["y", factor], ["z"])],
            factor,
            [],
            [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 2])],
        )
        for factor in ("two", "three")
    ]
    path = save_graph(
        tmp_path / "if.onnx",
        [
            ("Constant", [], ["two"], {"value_float": 2.0}),
            ("Constant", [], ["three"], {"value_float": 3.0}),
            ("Neg", ["x"], ["y"], {}),
            ("If", ["b"], ["z"], {"then_branch": branch[0], "else_branch": branch[1]}),
        ],
        {"x": ("FLOAT", ["n", 2]), "b": ("BOOL", [])},
        {"z": ("FLOAT", ["n", 2])},
    )
    parts = OnnxParts(path)
    assert {"y", "two", "three"} <= next(s.reads for s in parts.steps if s.operator == "If")
    x = np.ones((3, 2), np.float32)
    for flag, factor in ((True, -2), (False, -3)):
        found = run(parts.part([], ["z"]), {"x": x, "b": np.array(flag)})
        np.testing.assert_array_equal(found["z"], factor * x)


def test_the_products_of_features(graph: Path, tmp_path: Path) -> None:
    parts = OnnxParts(graph)
    assert takes_bags(parts)
    assert wide_products(parts) == {"fine": ["fine_product"], "coarse": ["coarse_sum"]}
    narrow = OnnxParts(save_aggregator(tmp_path / "narrow.onnx", width=WIDTH - 1))
    assert takes_bags(narrow)
    assert wide_products(narrow) == {}
    encoder = save_graph(
        tmp_path / "encoder.onnx",
        [("Cast", ["tiles"], ["features"], {"to": 1})],
        {"tiles": ("UINT8", ["n", 8, 8, 3])},
        {"features": ("FLOAT", ["n", 8, 8, 3])},
    )
    assert not takes_bags(OnnxParts(encoder))


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((WIDTH, 4), np.float32), "w")
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
        for name, width in (("x", WIDTH), ("y", 4))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    made = onnx.helper.make_graph([node], "test", ports[:1], ports[1:], [weight])
    path = tmp_path / "outside.onnx"
    onnx.save(
        onnx.helper.make_model(made),
        path,
        save_as_external_data=True,
        size_threshold=0,
        location="w",
    )
    with pytest.raises(BundleUnsupported, match="another file"):
        OnnxParts(path).part([], ["y"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no graph",
        lambda data: b"\xff" * 64,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
    ],
)
def test_what_is_no_graph(graph: Path, tmp_path: Path, damage) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damage(graph.read_bytes()))
    with pytest.raises(BundleUnsupported, match="no ONNX graph"):
        OnnxParts(path)


def test_a_graph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleUnsupported, match="no graph at"):
        OnnxParts(tmp_path / "missing.onnx")
