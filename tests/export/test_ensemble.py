"""Folds as one graph: the mean of the eager models, and a bundle like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from cmamil_sdk.bundle import Bundle  # noqa: E402
from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.export.aggregator import (  # noqa: E402
    AggregatorGraph,
    export_aggregator,
    probe_inputs,
)
from cmamil_sdk.export.folds import load_folds  # noqa: E402
from cmamil_sdk.models.base import MILModel  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.predict import LocalPredictor  # noqa: E402
from cmamil_sdk.tiling.recipe import parse_scales  # noqa: E402

DIM = 6
FORMS = {
    "nested": ("cma-mil", "5x,20x", {}),
    "global": ("cma-mil", "5x,20x", {"cross_attention": "global"}),
    "hmil": ("hmil", "20x", {"parents": [0, 1, 1]}),
    "mean": ("mean", "20x", {}),
    "DSMIL": ("torchmil:DSMIL", "20x", {}),
    "TransMIL": ("torchmil:TransMIL", "20x", {}),
}


def members(kind: str, scales: str, options: dict[str, object]) -> list[MILModel]:
    """Two models, each with weights and standardisation of its own."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        names = scales.split(",")
        settings = {"scales": names, "feature_dim": DIM, "n_classes": 3, "dim": 8}
        model = build_model(kind, settings | options)
        moments = {name: (torch.randn(DIM) * 0.3, torch.rand(DIM) + 0.5) for name in names}
        model.set_standardization(moments)
        made.append(model.eval())
    return made


_DEAR = {"TransMIL"}  # half a minute to export


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[pytest.mark.long] * (f in _DEAR)) for f in FORMS]
)
def test_the_graph_is_the_mean_of_the_models(form, tmp_path):
    kind, text, options = FORMS[form]
    scales, models = parse_scales(text), members(kind, text, options)
    coarse = 2.5 if form == "hmil" else None
    path = tmp_path / "aggregator.onnx"
    report = export_aggregator(models, scales, 1.5, path, coarse_temperature=coarse)
    assert max(report.values()) < 1e-4
    module = AggregatorGraph(models, 1.5, coarse)
    inputs = probe_inputs(module, scales, finest_tiles=90, seed=5)
    features = {name: torch.from_numpy(inputs[f"features_{name}"]) for name in module.scales}
    index = {name: torch.from_numpy(inputs[name]) for name in module.index_names}
    with torch.inference_mode():
        answers = [model(features, index) for model in models]
    got = load_engine(path, engine="onnxruntime", device="cpu").infer(inputs)
    assert list(got) == module.output_names

    def check(prefix: str, levels: list, temperature: float) -> None:
        logits = np.mean([level.logits.numpy() for level in levels], axis=0)
        np.testing.assert_allclose(got[f"{prefix}logits"], logits, atol=2e-5)
        powers = np.exp(logits / temperature)
        np.testing.assert_allclose(got[f"{prefix}probabilities"], powers / powers.sum(), atol=1e-5)
        for part in ("attention", "contribution"):
            if getattr(levels[0], part) is None:
                assert not any(name.startswith(f"{prefix}{part}") for name in got)
                continue
            for scale in module.scales:
                rows = np.mean([getattr(level, part)[scale].numpy() for level in levels], axis=0)
                np.testing.assert_allclose(got[f"{prefix}{part}_{scale}"], rows, atol=2e-5)
        if levels[0].bias is not None:
            total = got[f"{prefix}bias"][0] + sum(
                got[f"{prefix}contribution_{scale}"].sum(axis=0) for scale in module.scales
            )
            np.testing.assert_allclose(total, got[f"{prefix}logits"][0], atol=1e-5)

    check("", answers, 1.5)
    if coarse is not None:
        check("coarse_", [answer.coarse for answer in answers], coarse)


@pytest.fixture(scope="module")
def ensemble(make_bundle) -> Path:
    return make_bundle("folds", "abmil", "20x", 3)


def test_the_bundle_answers_for_all_folds(ensemble, synthetic_slide):
    run = ensemble.parents[2] / "run"
    trained = load_folds(run, "all")
    bundle = Bundle.load(ensemble, device="cpu")
    manifest = bundle.manifest
    assert manifest.temperature == trained.temperature
    assert [entry["fold"] for entry in manifest.training["folds"]] == [0, 1, 2]
    assert manifest.hyperparameters == trained.meta.hyperparameters
    assert bundle.self_test()["aggregator_difference"] < 1e-4
    predictor = LocalPredictor(bundle, workers=1)
    prediction = predictor.predict(synthetic_slide)
    predictor.close()
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    assert prediction.top_tiles and prediction.bundle == "folds/1"
