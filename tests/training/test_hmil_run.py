"""HMIL from feature files to a run directory: both levels scored, calibrated and written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmamil_sdk.errors import ConfigInvalid, RunInvalid
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.runs import load_checkpoint
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.data import TrainingBag, bag_tensors
from cmamil_sdk.training.evaluation import evaluate_run, load_model
from cmamil_sdk.training.fit import fit, predict_levels
from cmamil_sdk.training.run import train

from .conftest import Cohort, make_bag

pytestmark = pytest.mark.usefixtures("blank_pictures")

HIERARCHY = {"benign": "harmless", "in situ": "tumour", "invasive": "tumour"}
PARENTS = (0, 1, 1)
COARSE_METRICS = {
    "coarse_accuracy",
    "coarse_balanced_accuracy",
    "coarse_auc",
    "coarse_ece",
    "parent_accuracy",
    "levels_agree",
}


def config(**options: Any) -> TrainConfig:
    quick = {"epochs": 6, "lr": 5e-3, "folds": 2, "dim": 16, "accumulate": 4}
    return make_config(model="hmil", **({"hierarchy": HIERARCHY} | quick | options))


def bags(n: int, first_seed: int = 0) -> list[TrainingBag]:
    return [bag_tensors(make_bag(f"s{i}", i % 3, seed=first_seed + i), i % 3) for i in range(n)]


def fitted(settings: TrainConfig, seed: int = 0) -> tuple[HMIL, torch.Tensor]:
    torch.manual_seed(7)
    head = settings.head or "per_class"
    model = HMIL(("10x", "20x"), 6, 3, PARENTS, dim=16, dropout=settings.drop_out, head=head)
    fit(model, bags(15), [], settings, seed=seed)
    return model, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "paper"},
        {"recipe": "repo"},
        {"fine_weight": 0.5},
        {"coarse_weight": 0.0},
        {"bag_align_weight": 0.0},
        {"inst_align_weight": 0.0},
        {"contrast_weight": 1.0},
        {"logit_adjust": 0.0},
        {"label_smoothing": 0.1},
        {"drop_out": 0.6},
        {"accumulate": 5},
    ],
)
def test_every_option_changes_the_training(change: dict[str, Any]) -> None:
    base, changed = fitted(config(epochs=2)), fitted(config(**{"epochs": 2} | change))
    assert changed[1].isfinite().all()
    assert not torch.equal(base[1], changed[1])


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_two_runs_are_equal_to_the_bit_and_both_levels_learn(contrast: float) -> None:
    settings = config(epochs=20, contrast_weight=contrast)
    (model, one), (_, two) = fitted(settings), fitted(settings)
    assert torch.equal(one, two)
    unseen = bags(60, 500)
    labels = np.array([bag.label for bag in unseen])
    levels = predict_levels(model, unseen, settings)
    assert levels.coarse is not None and levels.coarse.shape == (60, 2)
    assert np.mean(levels.fine.argmax(axis=1) == labels) > 0.85
    assert np.mean(levels.coarse.argmax(axis=1) == np.array(PARENTS)[labels]) > 0.85


def test_no_bags_have_empty_answers_of_both_levels() -> None:
    model = HMIL(("10x", "20x"), 6, 3, PARENTS, dim=16)
    levels = predict_levels(model, [], config())
    assert levels.fine.shape == (0, 3)
    assert levels.coarse is not None and levels.coarse.shape == (0, 2)


@pytest.mark.parametrize("scales", [("20x",), ("10x", "20x")])
def test_a_run_reports_both_levels(
    shared_cohort: Cohort, tmp_path: Path, scales: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    settings = config(scales=scales, val_share=0.3)
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    summary = train(settings, run=run, **paths)
    assert (summary["model"], summary["coarse_answer"]) == ("hmil", "own")
    assert set(summary["mean"]) >= COARSE_METRICS and summary["mean"]["coarse_auc"] > 0.8
    assert train(settings, run=run, **paths) == summary
    assert [fold["slides_per_step"] for fold in summary["folds"]] == [4, 4]

    model, meta = load_model(run / "fold_1")
    assert isinstance(model, HMIL)
    assert meta.hierarchy is not None and meta.hierarchy.coarse_labels == ("harmless", "tumour")
    assert meta.hyperparameters["parents"] == list(meta.hierarchy.parents) == [0, 1, 1]
    assert meta.hyperparameters["head"] == "per_class"
    assert meta.coarse_temperature is not None
    assert {"test_coarse_auc", "test_parent_accuracy", "val_auc"} <= set(meta.metrics)
    assert meta.coarse_temperature == summary["folds"][1]["coarse_temperature"]

    again = evaluate_run(run, **paths).summary
    for name in ("auc", *COARSE_METRICS):
        assert again["mean"][name] == pytest.approx(summary["mean"][name], nan_ok=True), name
    assert set(summary["ci95"]) == set(summary["mean"]) and again["ci95"] == summary["ci95"]
    for name in ("coarse_accuracy", "parent_accuracy", "levels_agree"):
        low, high = summary["ci95"][name]
        assert low <= summary["mean"][name] <= high, name

    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    hits, agree = [], []
    for row in rows:
        coarse = {n: float(row[f"coarse_probability_{n}"]) for n in ("harmless", "tumour")}
        fine = {n: float(row[f"probability_{n}"]) for n in HIERARCHY}
        assert sum(coarse.values()) == pytest.approx(1.0)
        answer, parent = max(coarse, key=coarse.__getitem__), HIERARCHY[max(fine, key=fine.get)]
        hits.append(answer == HIERARCHY[row["label"]])
        agree.append(answer == parent)
    assert np.mean(hits) == pytest.approx(summary["mean"]["coarse_accuracy"])
    assert np.mean(agree) == pytest.approx(summary["mean"]["levels_agree"])
    confusion = np.sum([fold["test"]["coarse_confusion"] for fold in summary["folds"]], axis=0)
    assert (confusion.sum(), np.trace(confusion)) == (len(rows), sum(hits))
    assert (run / "coarse_confusion.png").read_bytes()[:4] == b"\x89PNG"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("Confusion of coarse classes") == 2, "as caption and alternative text"
    assert "<td>coarse ECE after temperature</td>" in page


def test_without_a_coarse_loss_the_coarse_answer_is_summed_up(
    shared_cohort: Cohort, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    summary = train(config(coarse_weight=0.0), run=run, **paths)
    assert summary["coarse_answer"] == "summed"
    assert load_model(run / "fold_0")[1].coarse_temperature is None
    assert all("coarse_temperature" not in fold for fold in summary["folds"])
    with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hits = []
    for row in rows:
        fine = {n: float(row[f"probability_{n}"]) for n in HIERARCHY}
        for name in ("harmless", "tumour"):
            sum_of_children = sum(p for n, p in fine.items() if HIERARCHY[n] == name)
            assert float(row[f"coarse_probability_{name}"]) == pytest.approx(sum_of_children)
        if row["split"] == "test":
            hits.append(row["coarse_prediction"] == HIERARCHY[row["label"]])
    assert np.mean(hits) == pytest.approx(summary["mean"]["coarse_accuracy"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "sums of the labels" in page and "the model&#x27;s own" in page

    again = evaluate_run(run, **paths).summary
    assert again["coarse_answer"] == "summed" and again["ci95"] == summary["ci95"]


def test_a_run_of_another_hierarchy_or_recipe_is_another_run(
    shared_cohort: Cohort, tmp_path: Path
) -> None:
    from cmamil_sdk.errors import OutputExists

    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    train(config(epochs=1), run=tmp_path / "run", **paths)
    other = HIERARCHY | {"in situ": "harmless"}
    for change in ({"recipe": "repo"}, {"hierarchy": other}, {"model": "cma-mil"}):
        settings = make_config(epochs=1) if "model" in change else config(epochs=1, **change)
        with pytest.raises(OutputExists):
            train(settings, run=tmp_path / "run", **paths)


def test_a_run_that_was_begun_with_other_default_weights_does_not_go_on(
    shared_cohort: Cohort, tmp_path: Path
) -> None:
    """Unset weights look alike in the configuration, whatever they meant when the run was begun."""
    from cmamil_sdk.errors import OutputExists

    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    run = tmp_path / "run"
    train(config(epochs=1), run=run, **paths)
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert record["config"]["inst_align_weight"] is None
    assert record["losses"]["weights"]["inst_align"] == 4.0
    train(config(epochs=1), run=run, **paths)
    record["losses"]["weights"]["inst_align"] = 1.0
    for losses in (record["losses"], None):
        (run / "config.json").write_text(json.dumps(record | {"losses": losses}), encoding="utf-8")
        with pytest.raises(OutputExists, match="losses"):
            train(config(epochs=1), run=run, **paths)


@pytest.mark.parametrize(
    ("hierarchy", "message"),
    [
        ({"benign": "x", "invasive": "y"}, "no coarse label to in situ"),
        (HIERARCHY | {"normal": "harmless"}, "names normal"),
        (dict.fromkeys(HIERARCHY, "x"), "at least two"),
    ],
)
def test_a_hierarchy_that_does_not_fit_stops_before_any_feature_is_read(
    cohort: Cohort, tmp_path: Path, hierarchy: dict[str, str], message: str
) -> None:
    next(cohort.features.glob("*.h5")).write_bytes(b"broken")
    with pytest.raises(ConfigInvalid, match=message):
        train(
            config(hierarchy=hierarchy),
            features=cohort.features,
            labels=cohort.labels,
            run=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_whose_hierarchy_does_not_fit_its_labels_is_refused(
    shared_cohort: Cohort, tmp_path: Path
) -> None:
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    train(config(epochs=1), run=tmp_path / "run", **paths)
    file = tmp_path / "run" / "fold_0" / "checkpoint.json"
    document = json.loads(file.read_text())
    document["hierarchy"]["parents"] = [0, 1]
    file.write_text(json.dumps(document))
    with pytest.raises(RunInvalid, match="2 parents for 3 labels"):
        load_checkpoint(tmp_path / "run" / "fold_0")
