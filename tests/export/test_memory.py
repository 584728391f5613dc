"""Large bags: graphs that still are their models, and the memory they need in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from cmamil_sdk.engines.choose import engine_precisions  # noqa: E402
from cmamil_sdk.export import aggregator  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402

from .conftest import ALL_BAGS  # noqa: E402

FEATURE_DIM, FINEST_TILES = 1024, 64_000
PROGRAM = Path(__file__).with_name("aggregator_memory.py")
FORMS = {
    "nested": ("cma-mil", "5x,10x,20x", {}, 1, 1024),
    "nested, five folds": ("cma-mil", "5x,10x,20x", {}, 5, 3072),
    "hmil": ("hmil", "5x,10x,20x", {"parents": [0, 1, 1]}, 1, 3072),
    "global": ("cma-mil", "5x,10x,20x", {"cross_attention": "global"}, 1, 3072),
    "nested-bias": ("cma-mil", "5x,10x,20x", {"cross_attention": "nested-bias"}, 1, 3072),
    "self-attention": ("cma-mil", "20x", {"cross_attention": "global"}, 1, 3072),
    "TransformerABMIL": ("torchmil:TransformerABMIL", "20x", {}, 1, 3072),
    "TransMIL": ("torchmil:TransMIL", "20x", {}, 1, 3072),
}


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_graphs_are_their_models_up_to_the_largest_bags(form, tmp_path, monkeypatch):
    kind, text, options, folds, _ = FORMS[form]
    monkeypatch.setattr(aggregator, "PARITY_FINEST_TILES", ALL_BAGS)
    torch.manual_seed(0)
    settings = {"scales": text.split(","), "feature_dim": 24, "n_classes": 3, "dim": 16}
    models = [build_model(kind, settings | options).eval() for _ in range(folds)]
    coarse = 1.5 if kind == "hmil" else None
    report = aggregator.export_aggregator(
        models, parse_scales(text), 1.0, tmp_path / "a.onnx", coarse_temperature=coarse
    )
    assert max(report.values()) < 1e-4


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_the_largest_bags_fit(form, precision, tmp_path, monkeypatch):
    if precision not in engine_precisions("openvino"):
        pytest.skip(f"this processor has no {precision} arithmetic")
    kind, text, options, folds, most_mib = FORMS[form]
    monkeypatch.setattr(aggregator, "PARITY_FINEST_TILES", (1, 513))
    settings = {"scales": text.split(","), "feature_dim": FEATURE_DIM, "n_classes": 3}
    models = [build_model(kind, settings | options).eval() for _ in range(folds)]
    graph = tmp_path / "aggregator.onnx"
    aggregator.export_aggregator(models, parse_scales(text), 1.0, graph)
    sizes = (str(FEATURE_DIM), str(FINEST_TILES))
    inputs = [port.name for port in onnx.load(graph).graph.input]
    command = [sys.executable, str(PROGRAM), str(graph), *sizes, precision, *inputs]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    sys.stdout.write(f"{form}, {precision}: {told.stdout} MiB\n")
    assert int(told.stdout) < most_mib
