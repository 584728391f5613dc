"""HMIL exported, bundled, predicted with and served: coarse answers on the whole way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from cmamil_sdk.bundle import Bundle  # noqa: E402
from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.errors import BundleCorrupt  # noqa: E402
from cmamil_sdk.export.aggregator import (  # noqa: E402
    AggregatorGraph,
    eager_outputs,
    export_aggregator,
)
from cmamil_sdk.export.bundle import export_bundle  # noqa: E402
from cmamil_sdk.export.encoder import load_encoder  # noqa: E402
from cmamil_sdk.export.probe_bags import probe_bag  # noqa: E402
from cmamil_sdk.features.bag import Bag  # noqa: E402
from cmamil_sdk.files import write_json  # noqa: E402
from cmamil_sdk.hierarchy import Hierarchy  # noqa: E402
from cmamil_sdk.models.hmil import HMIL  # noqa: E402
from cmamil_sdk.predict import LocalPredictor, Prediction  # noqa: E402
from cmamil_sdk.runs import CheckpointMeta, fold_directory, save_checkpoint  # noqa: E402
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales  # noqa: E402

LABELS = ("benign", "in_situ", "invasive", "normal")
PARENT_OF = {"benign": "calm", "normal": "calm", "in_situ": "early", "invasive": "late"}
HIERARCHY = Hierarchy.of(LABELS, PARENT_OF)
TEMPERATURES = (1.5, 2.5)


def make_model(scales: str, feature_dim: int, **options: object) -> HMIL:
    torch.manual_seed(3)
    names = [s.name for s in parse_scales(scales)]
    model = HMIL(names, feature_dim, 4, HIERARCHY.parents, **({"dim": 16} | options))
    # Away from the initial values: zeros among them would hide a wrong index, bias or fusion.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    ("scales", "options"),
    [
        ("20x", {}),
        ("20x", {"head": "shared"}),
        ("20x", {"cross_attention": "global"}),
        ("5x,10x,20x", {}),
        ("5x,20x", {"cross_attention": "global"}),
        ("5x,20x", {"cross_attention": "nested-bias", "embed_dim": 5}),
    ],
)
def test_the_graph_is_the_model_at_both_levels(scales, options, tmp_path):
    model = make_model(scales, 12, **options)
    path = tmp_path / "aggregator.onnx"
    report = export_aggregator(
        model, parse_scales(scales), TEMPERATURES[0], path, coarse_temperature=TEMPERATURES[1]
    )
    assert max(report.values()) < 1e-4
    engine = load_engine(path, engine="onnxruntime", device="cpu")
    module = AggregatorGraph(model, *TEMPERATURES).eval()
    for finest in (1, 2, 333):
        bag = probe_bag(parse_scales(scales), 12, finest_tiles=finest, seed=finest)
        inputs = {n: bag[n] for n in (*(f"features_{s}" for s in model.scales), *model.index_names)}
        got, expected = engine.infer(inputs), eager_outputs(module, inputs)
        assert list(got) == list(expected) == module.output_names
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
        for prefix, n_classes, temperature in (("", 4, 1.5), ("coarse_", 3, 2.5)):
            logits = got[f"{prefix}logits"]
            total = got[f"{prefix}bias"][0].astype(np.float64)
            for scale in model.scales:
                n = len(inputs[f"features_{scale}"])
                assert got[f"{prefix}attention_{scale}"].shape == (n_classes, n)
                total = total + got[f"{prefix}contribution_{scale}"].sum(axis=0, dtype=np.float64)
            np.testing.assert_allclose(total, logits[0], atol=1e-4)
            scaled = np.exp(logits / temperature)
            np.testing.assert_allclose(
                got[f"{prefix}probabilities"], scaled / scaled.sum(), rtol=1e-4
            )


def write_run(run: Path, model: HMIL, coarse_temperature: float | None = TEMPERATURES[1]) -> None:
    meta = CheckpointMeta(
        model_kind="hmil",
        hyperparameters=model.hyperparameters,
        labels=LABELS,
        hierarchy=HIERARCHY,
        recipe=TilingRecipe(scales=parse_scales("10x,20x")),
        encoder=load_encoder("efficientnet_lite0").info,
        fold=0,
        seed=0,
        temperature=TEMPERATURES[0],
        coarse_temperature=coarse_temperature,
    )
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint(fold_directory(run, 0), meta, state)
    write_json(run / "metrics.json", {"folds": [{"fold": 0}]})


@pytest.fixture(scope="module")
def model() -> HMIL:
    return make_model("10x,20x", 1280)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("hmil")
    write_run(folder / "run", model)
    return Bundle.load(export_bundle(folder / "run", folder / "b", name="hmil"), device="cpu")


def one_bag(seed: int) -> Bag:
    rng = np.random.default_rng(seed)
    scales = parse_scales("10x,20x")
    counts, centre = {"10x": 3, "20x": 12}, rng.normal(0, 3, 1280)
    return Bag(
        slide_id="bag",
        scales=scales,
        features={
            n: rng.normal(centre, 1, (c, 1280)).astype(np.float32) for n, c in counts.items()
        },
        coords={n: np.zeros((c, 2), np.int64) for n, c in counts.items()},
        parent={"10x": np.full(3, -1), "20x": np.repeat(np.arange(3), 4)},
        tissue={n: np.ones(c, np.float32) for n, c in counts.items()},
    )


def test_tensorrt_builds_a_plan_of_it(bundle):
    pytest.importorskip("tensorrt_rtx")
    from cmamil_sdk.export.tensorrt import aggregator_profiles, build_plan

    plan = build_plan(
        bundle.root / "aggregator.onnx",
        lambda inputs: aggregator_profiles(inputs, bundle.manifest.recipe.scales),
        runtime="tensorrt-rtx",
        compute_capabilities=["89"],
    )
    assert set(plan.document.inputs) == {"features_10x", "features_20x"} | set(
        bundle.manifest.index_inputs
    )


def test_the_manifest_has_the_hierarchy_and_both_temperatures(bundle):
    assert bundle.manifest.hierarchy == HIERARCHY
    assert (bundle.manifest.temperature, bundle.manifest.coarse_temperature) == TEMPERATURES
    assert bundle.manifest.hyperparameters["parents"] == [0, 1, 2, 0]
    assert bundle.self_test()["aggregator_difference"] < 1e-4


def test_the_attention_shown_is_that_of_the_answered_class(bundle, model):
    seen = set()
    for seed in range(12):
        bag = one_bag(seed)
        found = bundle.aggregate(bag)
        with torch.inference_mode():
            expected = model(
                {n: torch.from_numpy(x) for n, x in bag.features.items()},
                {n: torch.from_numpy(x) for n, x in bag.index_arrays().items()},
            )
        winner = int(expected.logits.argmax())
        seen.add(winner)
        for scale in ("10x", "20x"):
            row = expected.attention[scale][winner].numpy()
            np.testing.assert_allclose(found.attention[scale], row, atol=1e-5)
        coarse = torch.softmax(expected.coarse.logits / TEMPERATURES[1], 1)[0].numpy()
        np.testing.assert_allclose(found.coarse_probabilities, coarse, atol=1e-5)
    assert len(seen) > 1, "one class always wins: this proves little"


def test_a_coarse_level_that_nothing_trained_is_left_out_and_summed_up(
    model, synthetic_slide, tmp_path
):
    write_run(tmp_path / "run", model, coarse_temperature=None)
    path = export_bundle(tmp_path / "run", tmp_path / "b", name="summed")
    bundle = Bundle.load(path, device="cpu")
    assert bundle.manifest.hierarchy == HIERARCHY and not bundle.manifest.has_coarse_level
    assert not [n for n in bundle.manifest.aggregator_outputs if n.startswith("coarse_")]
    assert bundle.self_test()["aggregator_difference"] < 1e-4
    found = bundle.aggregate(one_bag(0))
    p = found.probabilities
    np.testing.assert_allclose(found.coarse_probabilities, [p[0] + p[3], p[1], p[2]], atol=1e-7)

    prediction = predicted(bundle, synthetic_slide)
    for coarse, probability in prediction.coarse.items():
        fine = [prediction.probabilities[n] for n in LABELS if PARENT_OF[n] == coarse]
        assert probability == pytest.approx(sum(fine), abs=1e-6)
    assert [text for text in prediction.warnings if "sums of the labels' own" in text]


@pytest.mark.parametrize(
    ("fine", "disagree"), [((0.6, 0.1, 0.3), False), ((0.4, 0.35, 0.25), True)]
)
def test_summed_levels_disagree_where_many_labels_outweigh_the_most_probable(fine, disagree):
    """Of labels a (alone) and b, c (together): .4 wins over .35 and .25, and loses to their sum."""
    hierarchy = Hierarchy.of("abc", {"a": "x", "b": "y", "c": "y"})
    summed = hierarchy.summed(np.array(fine))
    assert summed.tolist() == pytest.approx([fine[0], fine[1] + fine[2]])
    assert (hierarchy.parents[int(np.argmax(fine))] != int(summed.argmax())) == disagree


def with_coarse_bias(root: Path, model: HMIL, target: int) -> Bundle:
    """A bundle whose coarse answer is always ``target``."""
    changed = make_model("10x,20x", 1280)
    changed.load_state_dict(model.state_dict())
    with torch.no_grad():
        changed.coarse.head.bias[target] += 1000.0
    write_run(root / "run", changed)
    return Bundle.load(export_bundle(root / "run", root / "b", name="biased"), device="cpu")


def predicted(bundle: Bundle, slide: Path) -> Prediction:
    predictor = LocalPredictor(bundle, workers=1)
    prediction = predictor.predict(slide)
    predictor.close()
    return prediction


@pytest.mark.slow
def test_a_prediction_tells_both_levels_and_whether_they_disagree(
    bundle, model, synthetic_slide, tmp_path
):
    label = predicted(bundle, synthetic_slide).label
    parent = PARENT_OF[label]
    other = next(name for name in HIERARCHY.coarse_labels if name != parent)
    found: dict[str, Prediction] = {}
    for name in (parent, other):
        target = HIERARCHY.coarse_labels.index(name)
        biased = with_coarse_bias(tmp_path / name, model, target)
        found[name] = predicted(biased, synthetic_slide)
        assert found[name].label == label
    for name, prediction in found.items():
        document = json.loads(json.dumps(prediction.to_json(), allow_nan=False))
        assert list(document["coarse"]) == list(HIERARCHY.coarse_labels)
        assert document["coarse"][name] == pytest.approx(1.0, abs=1e-4)
        told = [text for text in document["warnings"] if "disagree" in text]
        if name == parent:
            assert told == []
        else:
            assert len(told) == 1
            assert all(word in told[0] for word in (label, parent, name))

    from cmamil_sdk._client_results import prediction_from
    from cmamil_sdk.cli.predict import predictions_table
    from cmamil_sdk.serving.convert import prediction_message
    from cmamil_sdk.serving.models import LoadedModel
    from cmamil_sdk.serving.predictor import Answer

    prediction = replace(found[other], maps=())
    lines = predictions_table([prediction]).splitlines()
    assert "coarse" in lines[0] and other in lines[-1]
    model_stub = type("Model", (LoadedModel,), {"__init__": lambda self: None, "resource": "m"})()
    message = prediction_message(
        Answer(prediction=prediction, seconds_queued=0.0), model_stub, "id", attention=False
    )
    assert {s.label: s.probability for s in message.coarse_scores} == prediction.coarse
    assert replace(prediction_from(message), seconds={}) == replace(prediction, seconds={})


def test_a_bundle_whose_hierarchy_is_not_its_graphs_is_refused(bundle, tmp_path):
    for name, change in (
        ("less", {"coarse_labels": ["calm", "other"], "parents": [0, 1, 1, 0]}),
        ("none", None),
        ("short", {"coarse_labels": ["calm", "early", "late"], "parents": [0, 1, 2]}),
    ):
        copy = tmp_path / name
        shutil.copytree(bundle.root, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["hierarchy"] = change
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleCorrupt, match=r"coarse labels|parents"):
            Bundle.load(copy, device="cpu")
