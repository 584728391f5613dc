"""Graphs of aggregators in two parts: what is cut, and that both together answer as the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from cmamil_sdk.engines.graphs import PRECISION_KEY, is_split, split_graphs  # noqa: E402
from cmamil_sdk.export import aggregator  # noqa: E402
from cmamil_sdk.export.split import LEAST_WIDTH, wide_products, write_split  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402
from tests.engines.bags import WIDTH, draw_bag, save_aggregator  # noqa: E402
from tests.engines.graphs import save_graph  # noqa: E402

Bag = dict[str, np.ndarray]


def run(path: Path, inputs: Bag) -> Bag:
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {PRECISION_KEY: "bf16"}
    names = [port.name for port in session.get_outputs()]
    taken = {port.name: inputs[port.name] for port in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def run_parts(graph: Path, bag: Bag) -> tuple[Bag, Bag]:
    """What each part of a graph gives."""
    rest, products = split_graphs(graph)
    between = run(products, bag)
    return between, run(rest, bag | between)


def whole(path: Path, bag: Bag) -> Bag:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, bag), strict=True))


def assert_close(found: Bag, expected: Bag) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_aggregator(tmp_path_factory.mktemp("split") / "aggregator.onnx")


def test_parts_answer_as_the_whole(graph: Path) -> None:
    assert wide_products(onnx.load(graph).graph) == {
        "fine": ["fine_product"],
        "coarse": ["coarse_sum"],
    }
    between, found = run_parts(graph, draw_bag())
    assert {name: value.shape for name, value in between.items()} == {
        "fine.0": (70, 16),
        "coarse.0": (9, 16),
    }
    assert_close(found, whole(graph, draw_bag()))


def test_no_weight_is_in_both(graph: Path) -> None:
    parts = [onnx.load(path) for path in split_graphs(graph)]
    names = [{t.name for t in part.graph.initializer} for part in parts]
    constants = [
        {n.output[0] for n in part.graph.node if n.op_type == "Constant"} for part in parts
    ]
    assert not names[0] & names[1]
    assert not constants[0] & constants[1]
    assert "fine_weight" in names[1] | constants[1]


def test_narrow_features_are_not_worth_it(tmp_path: Path) -> None:
    narrow = save_aggregator(tmp_path / "narrow.onnx", width=WIDTH - 1)
    assert LEAST_WIDTH == WIDTH
    assert not write_split(narrow)
    assert not is_split(narrow)
    assert [path.name for path in tmp_path.iterdir()] == ["narrow.onnx"]


def test_an_encoder_has_no_features(tmp_path: Path) -> None:
    encoder = save_graph(
        tmp_path / "encoder.onnx",
        [("Cast", ["tiles"], ["features"], {"to": 1})],
        {"tiles": ("UINT8", ["n", 8, 8, 3])},
        {"features": ("FLOAT", ["n", 8, 8, 3])},
    )
    assert not write_split(encoder)


def test_features_that_are_used_beside_their_products(tmp_path: Path) -> None:
    """By a subgraph; and a product that is an output stays one."""
    weight = onnx.numpy_helper.from_array(np.full((WIDTH, 2), 0.1, np.float32))
    branches = [
        onnx.helper.make_graph(
            [onnx.helper.make_node(operator, ["x"], ["z"])],
            operator,
            [],
            [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", WIDTH])],
        )
        for operator in ("Neg", "Abs")
    ]
    path = save_graph(
        tmp_path / "if.onnx",
        [
            ("Constant", [], ["weight"], {"value": weight}),
            ("MatMul", ["x", "weight"], ["y"], {}),
            ("If", ["b"], ["z"], {"then_branch": branches[0], "else_branch": branches[1]}),
        ],
        {"x": ("FLOAT", ["n", WIDTH]), "b": ("BOOL", [])},
        {"y": ("FLOAT", ["n", 2]), "z": ("FLOAT", ["n", WIDTH])},
    )
    assert write_split(path)
    bag = {"x": np.ones((3, WIDTH), np.float32), "b": np.array(True)}
    between, found = run_parts(path, bag)
    assert list(between) == ["x.0"]
    assert_close(found, whole(path, bag))


FORMS: dict[str, tuple[str, Sequence[str], dict[str, Any], int]] = {
    "nested": ("cma-mil", ["5x", "20x"], {}, 1),
    "nested-bias": ("cma-mil", ["5x", "20x"], {"cross_attention": "nested-bias"}, 1),
    "global": ("cma-mil", ["5x", "20x"], {"cross_attention": "global"}, 1),
    "two folds": ("cma-mil", ["5x", "20x"], {}, 2),
    "hmil": ("hmil", ["5x", "20x"], {"parents": [0, 1, 1]}, 1),
    "abmil": ("torchmil:ABMIL", ["20x"], {}, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_scale_of_every_form_is_cut(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, names, options, folds = FORMS[form]
    if kind.startswith("torchmil:"):
        pytest.importorskip("torchmil")
    monkeypatch.setattr(aggregator, "PARITY_FINEST_TILES", (7,))
    monkeypatch.setattr(aggregator, "CHECKED_FINEST_TILES", (7,))
    torch.manual_seed(0)
    settings = {"scales": names, "feature_dim": WIDTH, "n_classes": 3}
    models = [build_model(kind, settings | options).eval() for _ in range(folds)]
    path, scales = tmp_path / "aggregator.onnx", parse_scales(",".join(names))
    coarse = 1.5 if kind == "hmil" else None
    aggregator.export_aggregator(models, scales, 1.0, path, coarse_temperature=coarse)
    assert is_split(path)
    module = aggregator.AggregatorGraph(models, 1.0, coarse).eval()
    bag = aggregator.probe_inputs(module, scales, finest_tiles=37, seed=1)
    between, found = run_parts(path, bag)
    assert {name.rpartition(".")[0] for name in between} == {f"features_{n}" for n in names}
    assert len(between) >= folds * len(names)
    assert_close(found, whole(path, bag))
    sizes = [part.stat().st_size for part in split_graphs(path)]
    assert sum(sizes) < 1.1 * path.stat().st_size + 20_000, "weights are in one part alone"
