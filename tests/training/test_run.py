from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmamil_sdk.errors import (
    ConfigInvalid,
    EngineMissing,
    LabelsInvalid,
    OutputExists,
    RecipeMismatch,
    RunInvalid,
)
from cmamil_sdk.features.file import read_feature_file, write_feature_file
from cmamil_sdk.runs import load_checkpoint
from cmamil_sdk.training.baselines import mean_feature_auc
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.evaluation import evaluate_run, load_model
from cmamil_sdk.training.run import train

from .conftest import Cohort, make_bag, provenance, write_cohort, write_labels

pytestmark = pytest.mark.usefixtures("blank_pictures")

CONFIG = make_config(epochs=5, lr=5e-3, schedule="onecycle", folds=3, dim=16, inst_loss="none")
QUICK = make_config(epochs=1, folds=2, dim=16)


def run_all(
    cohort: Cohort, run: Path, config: TrainConfig = CONFIG, **options: Any
) -> dict[str, Any]:
    return train(config, features=cohort.features, labels=cohort.labels, run=run, **options)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(
    shared_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished run that no test changes, and what train returned."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, run_all(shared_cohort, run)


def test_a_run_from_feature_files_to_metrics(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    per_fold = ("checkpoint.safetensors", "checkpoint.json", "metrics.json", "history.csv")
    of_run = ("config.json", "splits.csv", "predictions.csv", "metrics.json", "report.html")
    assert files == {*of_run, "roc.png", "confusion.png", "calibration.png"} | {
        f"fold_{fold}/{name}" for fold in range(3) for name in (*per_fold, "curves.png")
    }
    assert summary == json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {"model", "folds", "mean", "std", "ci95", "seconds"} <= set(summary)
    assert summary["model"] == "cma-mil"
    assert summary["mean"]["auc"] > 0.9
    low, high = summary["ci95"]["auc"]
    assert low <= summary["mean"]["auc"] <= high
    for fold in summary["folds"]:
        assert {"accuracy", "auc", "precision", "recall", "f1"} <= set(fold["test"])
        assert fold["test"]["slides"] == 12
    assert summary["mean"]["auc"] == pytest.approx(
        np.mean([fold["test"]["auc"] for fold in summary["folds"]])
    )


def test_predictions_fit_splits_labels_and_metrics(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, summary = finished
    splits = {(r["slide"], r["fold"]): r for r in rows_of(run / "splits.csv")}
    predictions = rows_of(run / "predictions.csv")
    tested = [row["slide"] for row in predictions if row["split"] == "test"]
    assert sorted(tested) == sorted(shared_cohort.slides)
    names = ["benign", "in situ", "invasive"]
    hits = []
    for row in predictions:
        split = splits[row["slide"], row["fold"]]
        assert (row["split"], row["label"]) == (split["split"], split["label"])
        probabilities = [float(row[f"probability_{name}"]) for name in names]
        assert sum(probabilities) == pytest.approx(1.0)
        assert row["prediction"] == names[int(np.argmax(probabilities))]
        if row["split"] == "test":
            hits.append(names[int(np.argmax(probabilities))] == row["label"])
    assert np.mean(hits) == pytest.approx(summary["mean"]["accuracy"])


def test_the_checkpoint_holds_the_model_that_was_scored(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = finished
    model, meta = load_model(run / "fold_1")
    assert meta.labels == ("benign", "in situ", "invasive")
    assert meta.recipe.names == ("10x", "20x") and meta.encoder.id == "test"
    assert meta.hyperparameters == model.hyperparameters
    assert meta.hyperparameters["cross_attention"] == "nested"
    assert meta.fold == 1 and {"val_auc", "val_loss", "test_auc"} <= set(meta.metrics)
    row = next(r for r in rows_of(run / "predictions.csv") if r["fold"] == "1")
    bag, _ = read_feature_file(shared_cohort.features / f"{row['slide']}.h5")
    with torch.no_grad():
        output = model(
            {name: torch.from_numpy(x) for name, x in bag.features.items()},
            {name: torch.from_numpy(x) for name, x in bag.index_arrays().items()},
        )
    probability = torch.softmax(output.logits[0] / meta.temperature, 0)[1].item()
    assert probability == pytest.approx(float(row["probability_in situ"]), abs=1e-6)


def test_a_finished_run_returns_its_metrics_and_trains_nothing(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, summary = finished
    started: list[int] = []
    again = run_all(shared_cohort, run, on_progress=lambda fold, *_: started.append(fold))
    assert (again, started) == (summary, [])


def test_what_a_kill_left_behind_is_removed(cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = run_all(cohort, run, QUICK)
    left = [run / ".config.json.99.tmp", run / "fold_0/.history.csv.99.tmp"]
    left += [run / "fold_1/unfinished.ckpt"]
    for path in left:
        path.write_bytes(b"half")
    assert run_all(cohort, run, QUICK) == first
    assert not any(path.exists() for path in left)


def test_a_kill_in_the_very_first_write_does_not_bar_the_run(
    cohort: Cohort, tmp_path: Path
) -> None:
    left = tmp_path / "run" / ".config.json.99.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    run_all(cohort, left.parent, QUICK)
    assert not left.exists()
    other = tmp_path / "other"
    other.mkdir()
    for name in (".config.json.99.tmp", "todo.txt"):
        (other / name).write_bytes(b"x")
    with pytest.raises(OutputExists, match="not a training run"):
        run_all(cohort, other, QUICK)
    assert (other / ".config.json.99.tmp").exists()


def test_a_different_run_in_the_directory_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_all(cohort, run, QUICK)
    with pytest.raises(OutputExists, match=r"epochs: 1 there, 2 here; seed: 1 there, 5 here\)"):
        run_all(cohort, run, QUICK.model_copy(update={"epochs": 2, "seed": 5}))
    rows = rows_of(cohort.labels)
    rows[0]["label"], rows[1]["label"] = "invasive", "invasive"
    write_labels(cohort.labels, rows)
    with pytest.raises(OutputExists, match="other splits"):
        run_all(cohort, run, QUICK)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x", encoding="utf-8")
    with pytest.raises(OutputExists, match="not a training run"):
        run_all(cohort, tmp_path / "notes", QUICK)


def test_other_features_are_not_the_same_run(cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_all(cohort, run, QUICK)
    path = cohort.features / f"{cohort.slides[0]}.h5"
    bag, provenance = read_feature_file(path)
    write_feature_file(path, bag, provenance.model_copy(update={"slide_sha256": "f" * 64}))
    with pytest.raises(OutputExists, match="features_sha256"):
        run_all(cohort, run, QUICK)


def test_folds_and_a_split_column_contradict_each_other(cohort: Cohort, tmp_path: Path) -> None:
    rows = [
        row | {"split": "test" if position >= 24 else "train"}
        for position, row in enumerate(rows_of(cohort.labels))
    ]
    write_labels(cohort.labels, rows)
    with pytest.raises(ConfigInvalid, match="split column"):
        run_all(cohort, tmp_path / "run", QUICK.model_copy(update={"folds": 3}))


def test_more_cache_is_not_a_different_run(cohort: Cohort, tmp_path: Path) -> None:
    first = run_all(cohort, tmp_path / "run", QUICK)
    again = QUICK.model_copy(update={"cache_mb": 1})
    assert run_all(cohort, tmp_path / "run", again) == first


def test_log_data_writes_tensorboard_events(cohort: Cohort, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    run_all(cohort, run, make_config(epochs=3, folds=2, dim=8, log_data=True))
    for fold in (0, 1):
        events = EventAccumulator(str(run / f"fold_{fold}" / "tensorboard"))
        events.Reload()
        history = rows_of(run / f"fold_{fold}" / "history.csv")
        assert set(events.Tags()["scalars"]) == set(history[0]) - {"epoch"}
        logged = [(event.step, event.value) for event in events.Scalars("train_loss")]
        expected = [(int(row["epoch"]), float(row["train_loss"])) for row in history]
        assert logged == [(step, pytest.approx(value)) for step, value in expected]
    run_all(cohort, tmp_path / "silent", QUICK)
    assert not list((tmp_path / "silent").rglob("*tfevents*"))


def test_given_splits_are_used(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    one_fold = tmp_path / "splits.csv"
    rows = [r for r in rows_of(finished[0] / "splits.csv") if r["fold"] == "2"]
    write_labels(one_fold, rows)
    all_given = QUICK.model_copy(update={"folds": None})
    summary = run_all(shared_cohort, tmp_path / "second", all_given, splits=one_fold)
    assert [fold["fold"] for fold in summary["folds"]] == [2]
    assert rows_of(tmp_path / "second" / "splits.csv") == rows


def test_a_split_column_makes_the_single_fold(cohort: Cohort, tmp_path: Path) -> None:
    rows = [
        row | {"split": "held_out" if position >= 24 else "development"}
        for position, row in enumerate(rows_of(cohort.labels))
    ]
    write_labels(cohort.labels, rows)
    summary = run_all(cohort, tmp_path / "run", make_config(epochs=1, dim=16))
    assert [fold["test"]["slides"] for fold in summary["folds"]] == [12]
    tested = [r for r in rows_of(tmp_path / "run" / "predictions.csv") if r["split"] == "test"]
    assert {row["slide"] for row in tested} == set(cohort.slides[24:])


@pytest.mark.parametrize(
    ("scales", "cross_attention"),
    [
        (("10x", "20x"), "global"),
        (("10x", "20x"), "none"),
        (("20x",), "global"),
        (("20x",), "none"),
    ],
)
def test_the_configuration_reaches_the_model(
    cohort: Cohort, tmp_path: Path, scales: tuple[str, ...], cross_attention: str
) -> None:
    config = make_config(
        epochs=1,
        folds=2,
        embed_dim=5,
        dim=10,
        attention_dim=3,
        heads=2,
        drop_out=0.4,
        cross_attention=cross_attention,
        cross_norm="layer",
        pooling="reference",
        standardize=False,
        scales=scales,
    )
    run_all(cohort, tmp_path / "run", config)
    meta, tensors = load_checkpoint(tmp_path / "run" / "fold_0")
    assert meta.hyperparameters == {
        "scales": list(scales),
        "feature_dim": 6,
        "n_classes": 3,
        "embed_dim": 5,
        "dim": 10,
        "attention_dim": 3,
        "heads": 2,
        "dropout": 0.4,
        "cross_attention": cross_attention,
        "cross_norm": "layer",
        "pooling": "reference",
        "standardize": False,
    }
    assert not any("standardizers" in name for name in tensors)


def test_standardisation_uses_the_training_slides_of_the_fold(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, _ = finished
    training = [
        row["slide"]
        for row in rows_of(run / "splits.csv")
        if (row["fold"], row["split"]) == ("1", "train")
    ]
    files = [shared_cohort.features / f"{slide}.h5" for slide in training]
    tiles = np.concatenate([read_feature_file(file)[0].features["20x"] for file in files])
    _, tensors = load_checkpoint(run / "fold_1")
    np.testing.assert_allclose(tensors["standardizers.1.mean"], tiles.mean(0), atol=1e-5)
    np.testing.assert_allclose(tensors["standardizers.1.std"], tiles.std(0), atol=1e-5)


def test_bad_input_ends_before_anything_is_written(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, 24)
    (cohort.features / "slide_01.h5").unlink()
    with pytest.raises(LabelsInvalid, match="slide_01"):
        run_all(cohort, tmp_path / "run", make_config(folds=2))
    assert not (tmp_path / "run").exists()
    with pytest.raises(LabelsInvalid, match="use fewer folds"):
        run_all(cohort, tmp_path / "run", make_config(folds=5))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [{"scale_loss": 0.5}, {"cross_attention": "nested"}],
)
def test_options_of_several_scales_are_refused_on_one(
    shared_cohort: Cohort, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = make_config(epochs=1, folds=2, dim=16, scales=("20x",), **options)
    with pytest.raises(ConfigInvalid, match=f"{next(iter(options))}.* one scale 20x"):
        run_all(shared_cohort, tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_evaluate_gives_the_metrics_of_the_training(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    run, summary = finished
    again = evaluate_run(run, features=shared_cohort.features, labels=shared_cohort.labels).summary
    assert again["mean"] == summary["mean"] and again["ci95"] == summary["ci95"]
    assert [f["test"] for f in again["folds"]] == [f["test"] for f in summary["folds"]]


def test_evaluate_needs_no_device_of_the_training(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, summary = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], run)
    document = json.loads((run / "config.json").read_text(encoding="utf-8"))
    document["config"]["device"] = "cuda:99"
    (run / "config.json").write_text(json.dumps(document), encoding="utf-8")
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    assert evaluate_run(run, **paths, device="cpu").summary["mean"] == summary["mean"]
    assert evaluate_run(run, **paths).summary["mean"] == pytest.approx(summary["mean"], abs=1e-4)
    with pytest.raises(EngineMissing, match="cuda:98"):
        evaluate_run(run, **paths, device="cuda:98")
    with pytest.raises(ConfigInvalid, match="device"):
        evaluate_run(run, **paths, device="tpu")


def test_evaluate_refuses_other_features_and_damaged_runs(cohort: Cohort, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_all(cohort, run, QUICK)
    weights = run / "fold_0" / "checkpoint.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunInvalid, match="fold_0"):
        evaluate_run(run, features=cohort.features, labels=cohort.labels)
    weights.write_bytes((run / "fold_1" / "checkpoint.safetensors").read_bytes())
    for position, slide in enumerate(cohort.slides):
        bag = make_bag(slide, position // 2 % 3, seed=position)
        write_feature_file(
            cohort.features / f"{slide}.h5", bag, provenance(slide, encoder="another")
        )
    with pytest.raises(RecipeMismatch, match="another recipe or encoder"):
        evaluate_run(run, features=cohort.features, labels=cohort.labels)
    with pytest.raises(RunInvalid):
        evaluate_run(tmp_path / "absent", features=cohort.features, labels=cohort.labels)


def test_mean_feature_baseline_sees_what_is_in_the_mean(
    shared_cohort: Cohort, finished: tuple[Path, dict[str, Any]]
) -> None:
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels}
    assert mean_feature_auc(**paths, splits=finished[0], scale="20x") > 0.9
    assert 0.2 < mean_feature_auc(**paths, splits=finished[0], scale="10x") < 0.8
