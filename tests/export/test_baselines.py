"""Baselines as graphs: any number of tiles, the eager model's answers, and no output it lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported  # noqa: E402
from cmamil_sdk.export.aggregator import (  # noqa: E402
    AggregatorGraph,
    eager_outputs,
    explanations_of,
    export_aggregator,
)
from cmamil_sdk.export.probe_bags import probe_bag  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.models.names import SINGLE_SCALE  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402

SCALES = parse_scales("20x")
PLANNED = {"abmil": "", "torchmil:DSMIL": r"node_sort\w*: K exceeds the maximum"}
"""Models of which TensorRT builds a plan, and why not."""
WITHOUT_ATTENTION = {"mean", "max", "torchmil:TransMIL"}


@pytest.mark.parametrize("kind", SINGLE_SCALE)
def test_the_graph_is_the_model(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    options = {"scales": ["20x"], "feature_dim": 6, "n_classes": 4, "embed_dim": 5, "dim": 16}
    model = build_model(kind, options).eval()
    model.set_standardization({"20x": (torch.randn(6) * 0.3, torch.rand(6) + 0.5)})
    path = tmp_path / "aggregator.onnx"
    report = export_aggregator(model, SCALES, 1.5, path)
    told = {"attention": kind not in WITHOUT_ATTENTION, "contribution": kind != "torchmil:TransMIL"}
    assert explanations_of(model) == tuple(name for name, there in told.items() if there)
    assert set(report) == {"aggregator_logits"} | {f"aggregator_{n}" for n in told if told[n]}
    engine, module = (
        load_engine(path, engine="onnxruntime", device="cpu"),
        AggregatorGraph(model, 1.5),
    )
    for n in (1, 2, 3, 5, 16, 17, 300):  # squares and landmarks of TransMIL with and without a rest
        inputs = {"features_20x": probe_bag(SCALES, 6, finest_tiles=n, seed=n)["features_20x"]}
        got, expected = engine.infer(inputs), eager_outputs(module.eval(), inputs)
        assert list(got) == list(expected) == module.output_names
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=1e-5, rtol=1e-4, err_msg=name)
        if told["contribution"]:
            total = got["bias"][0] + got["contribution_20x"].sum(axis=0)
            np.testing.assert_allclose(total, got["logits"][0], atol=1e-5)
    if kind in PLANNED:
        check_plan(path, PLANNED[kind])


def check_plan(path: Path, refusal: str) -> None:
    """TensorRT builds a plan of the graph, or refuses it with the reason."""
    pytest.importorskip("tensorrt_rtx")
    from cmamil_sdk.export.tensorrt import aggregator_profiles, build_plan

    def build() -> int:
        plan = build_plan(
            path,
            lambda inputs: aggregator_profiles(inputs, SCALES),
            runtime="tensorrt-rtx",
            compute_capabilities=["89"],
        )
        return len(plan.document.key.profiles)

    if refusal:
        with pytest.raises(BundleUnsupported, match=refusal):
            build()
    else:
        assert build() == 3
