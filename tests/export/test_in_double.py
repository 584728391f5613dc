"""A model in float32 is a reference only where float64 says the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from cmamil_sdk.errors import ParityFailed  # noqa: E402
from cmamil_sdk.export.aggregator import (  # noqa: E402
    AggregatorGraph,
    check_in_double,
    eager_outputs,
    export_aggregator,
    probe_inputs,
)
from cmamil_sdk.export.encoder import load_encoder  # noqa: E402
from cmamil_sdk.export.reference import make_reference, probe_tiles  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.models.names import SINGLE_SCALE  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402

from .test_user_graph import expected_of, write_graph  # noqa: E402

SMALL = {"feature_dim": 6, "n_classes": 4, "dim": 16}
MODELS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"scales": ["20x"]}) for kind in SINGLE_SCALE),
    *(
        ("cma-mil", {"scales": ["5x", "20x"], "cross_attention": form, "heads": heads})
        for form, heads in (("nested", 1), ("global", 2), ("nested-bias", 1), ("none", 1))
    ),
    ("hmil", {"scales": ["5x", "20x"], "parents": [0, 0, 1, 1]}),
]


def module_of(kind: str, options: dict[str, Any]) -> AggregatorGraph:
    torch.manual_seed(5)
    model = build_model(kind, SMALL | options).eval()
    return AggregatorGraph(model, 1.5, 1.2 if kind == "hmil" else None).eval()


@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_a_copy_in_float64_computes_in_it(kind: str, options: dict[str, Any]) -> None:
    module, scales = module_of(kind, options), parse_scales(",".join(options["scales"]))
    check_in_double(module, scales)
    inputs = probe_inputs(module, scales, finest_tiles=40, seed=1)
    doubled = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in inputs.items()}
    single, exact = (
        eager_outputs(module, inputs),
        eager_outputs(copy.deepcopy(module).double(), doubled),
    )
    for name, values in exact.items():
        assert single[name].dtype == np.float32
        assert values.dtype == np.float64
        if "logits" in name:
            assert (values != values.astype(np.float32)).any(), "rounded on the way"
        np.testing.assert_allclose(single[name], values, atol=1e-5)


@pytest.mark.parametrize("kind", ["cma-mil", "hmil", "abmil"])
def test_a_model_that_float32_is_too_coarse_for_is_not_exported(kind: str, tmp_path: Path) -> None:
    scales = parse_scales("20x")
    options = {"parents": [0, 0, 1, 1]} if kind == "hmil" else {}
    model = build_model(kind, SMALL | options | {"scales": ["20x"]}).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "classifier" in name or "head" in name:
                weights.mul_(1e6)
    path = tmp_path / "aggregator.onnx"
    with pytest.raises(
        ParityFailed, match=r"no reference: .* float64 by aggregator logits .*\(gate 0"
    ):
        export_aggregator(model, scales, 1.0, path, force=True)
    assert not path.exists()


def test_a_users_graph_is_computed_in_float64_too(tmp_path: Path) -> None:
    encoder = load_encoder(write_graph(tmp_path / "mine.onnx"))
    tiles = probe_tiles(32, count=3)
    found = encoder.features_in_double(tiles)
    assert found is not None
    np.testing.assert_allclose(found, expected_of(tiles), rtol=1e-5, atol=1e-6)
    make_reference(encoder, 32)


def node(kind: str, *names: str, **attributes: Any) -> Any:
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


def with_mean(*nodes: Any) -> list[Any]:
    mean = node("ReduceMean", "tiles", "axes", "mean", keepdims=0)
    return [mean, *nodes, node("MatMul", "last", "weight", "out")]


def test_a_users_graph_that_float32_is_too_coarse_for(tmp_path: Path) -> None:
    huge = helper.make_tensor("huge", TensorProto.FLOAT, [], [1e7])
    nodes = with_mean(
        helper.make_node("Constant", [], ["c"], value=huge),
        node("Add", "mean", "c", "far"),
        node("Sub", "far", "c", "last"),
    )
    encoder = load_encoder(write_graph(tmp_path / "mine.onnx", nodes=nodes))
    with pytest.raises(ParityFailed, match="cosine to those of float64 is"):
        make_reference(encoder, 32)


@pytest.mark.parametrize(
    "nodes",
    [
        [
            node("Cast", "mean", "half", to=TensorProto.FLOAT16),
            node("Cast", "half", "last", to=TensorProto.FLOAT),
        ],
        [node("Celu", "mean", "last")],
    ],
    ids=["rounds to 16 bits", "unknown to torch here"],
)
def test_a_users_graph_of_which_float64_says_nothing(tmp_path: Path, nodes: list[Any]) -> None:
    encoder = load_encoder(write_graph(tmp_path / "mine.onnx", nodes=with_mean(*nodes)))
    assert encoder.features_in_double(probe_tiles(32, count=2)) is None
    make_reference(encoder, 32)
