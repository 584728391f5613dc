"""Which folds become one model, and how it is calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from cmamil_sdk.calibration import fit_temperature
from cmamil_sdk.errors import FieldInvalid, ProvenanceUnknown, RunInvalid
from cmamil_sdk.export.folds import ensemble_temperatures, load_folds
from cmamil_sdk.files import csv_text, write_json
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.runs import CheckpointMeta, fold_directory, load_checkpoint, save_checkpoint

LABELS = ("a", "b", "c")
HIERARCHY = Hierarchy.of(LABELS, {"a": "x", "b": "y", "c": "y"})


def meta_of(fold: int, temperature: float, coarse_temperature: float | None) -> CheckpointMeta:
    return CheckpointMeta(
        model_kind="hmil",
        hyperparameters={},
        labels=LABELS,
        hierarchy=HIERARCHY,
        recipe=None,
        encoder=None,
        fold=fold,
        seed=0,
        temperature=temperature,
        coarse_temperature=coarse_temperature,
    )


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


class Answers:
    """Logits of folds for slides, written as a run writes them: as calibrated probabilities."""

    def __init__(self, metas: list[CheckpointMeta], slides: int) -> None:
        rng = np.random.default_rng(1)
        self.metas = metas
        self.truth = rng.integers(0, 3, slides)
        shape = (len(metas), slides)
        self.fine = rng.normal(0, 2, (*shape, 3)) + 2.0 * np.eye(3)[self.truth]
        coarse_truth = np.array(HIERARCHY.parents)[self.truth]
        self.coarse = rng.normal(0, 2, (*shape, 2)) + np.eye(2)[coarse_truth]

    def write(self, run: Path, parts: dict[int, dict[str, list[int]]]) -> None:
        """``parts``: fold -> split -> slides."""
        header = ["slide", "fold", "split", "label", *(f"probability_{n}" for n in LABELS)]
        header += ["prediction", *(f"coarse_probability_{n}" for n in HIERARCHY.coarse_labels)]
        lines = []
        for fold, splits in parts.items():
            for split, slides in splits.items():
                lines += [self._line(fold, split, slide) for slide in slides]
        (run / "predictions.csv").write_text(csv_text(header, lines))

    def _line(self, fold: int, split: str, slide: int) -> list[object]:
        meta = self.metas[fold]
        fine = softmax(self.fine[fold, slide] / meta.temperature).tolist()
        coarse = softmax(self.coarse[fold, slide] / (meta.coarse_temperature or 1.0)).tolist()
        label = LABELS[self.truth[slide]]
        return [f"s{slide}", fold, split, label, *fine, "a", *coarse]


def test_validation_slides_are_answered_by_the_mean_of_the_folds_that_did_not_train_on_them(
    tmp_path,
):
    metas = [meta_of(fold, t, 2.0 + t) for fold, t in enumerate((0.7, 1.0, 3.0))]
    answers = Answers(metas, 60)
    first, second, third, rest = (list(range(n, n + 15)) for n in (0, 15, 30, 45))
    answers.write(
        tmp_path,
        {
            0: {"val": second, "test": first},
            1: {"val": third, "test": second},
            2: {"val": third, "test": rest},
        },
    )
    held = [(answers.fine[[0, 1]], second), (answers.fine[[1, 2]], third)]
    logits = np.concatenate([values[:, slides].mean(axis=0) for values, slides in held])
    truth = answers.truth[second + third]
    found, coarse = ensemble_temperatures(tmp_path, metas)
    assert found == pytest.approx(fit_temperature(logits, truth), rel=1e-9)
    held = [(answers.coarse[[0, 1]], second), (answers.coarse[[1, 2]], third)]
    logits = np.concatenate([values[:, slides].mean(axis=0) for values, slides in held])
    parents = np.array(HIERARCHY.parents)[truth]
    assert coarse == pytest.approx(fit_temperature(logits, parents), rel=1e-9)
    own = [answers.fine[0][second], answers.fine[1][third], answers.fine[2][third]]
    alone = fit_temperature(np.concatenate(own), answers.truth[second + third + third])
    assert found < 0.9 * alone, "a mean of two is surer than one, and needs less of a temperature"
    everyone = fit_temperature(answers.fine[:, second + third].mean(axis=0), truth)
    assert everyone < found, "what error is left makes probabilities modest"


def test_folds_left_out_do_not_count_and_neither_does_a_coarse_level_nobody_trained(tmp_path):
    metas = [meta_of(fold, 1.0, None) for fold in range(3)]
    answers = Answers(metas, 20)
    slides = list(range(20))
    answers.write(tmp_path, {fold: {"val": slides} for fold in range(3)})
    found, coarse = ensemble_temperatures(tmp_path, metas[:2])
    expected = fit_temperature(answers.fine[:2].mean(axis=0), answers.truth)
    assert (found, coarse) == (pytest.approx(expected, rel=1e-9), None)


def test_without_validation_slides_it_is_not_calibrated(tmp_path):
    metas = [meta_of(fold, 1.0, 1.0) for fold in range(2)]
    Answers(metas, 6).write(tmp_path, {0: {"test": [0, 1, 2]}, 1: {"test": [3, 4, 5]}})
    assert ensemble_temperatures(tmp_path, metas) == (1.0, 1.0)


def test_probabilities_that_have_underflowed_are_read_all_the_same(tmp_path):
    metas = [meta_of(fold, 0.05, 1.0) for fold in range(2)]
    answers = Answers(metas, 30)
    answers.fine *= 100
    answers.write(tmp_path, {fold: {"val": list(range(30))} for fold in range(2)})
    assert 1.0 < ensemble_temperatures(tmp_path, metas)[0] < 20.0


@pytest.fixture
def run(make_run) -> Path:
    return make_run("abmil", "20x", 3)


def test_all_folds_or_one_or_the_best(run):
    together = load_folds(run, "all")
    assert [meta.fold for meta in together.metas] == [0, 1, 2]
    assert together.coarse_temperature is None
    assert together.temperature != 1.5
    assert [load_folds(run, choice).meta.fold for choice in (2, "best")] == [2, 0]
    assert load_folds(run, 2).temperature == 1.5
    weights = [model.classifier.weight for model in together.models]
    assert not (weights[0] == weights[1]).all()


def change_fold(run: Path, fold: int, **changes: object) -> None:
    meta, tensors = load_checkpoint(fold_directory(run, fold))
    save_checkpoint(fold_directory(run, fold), meta.model_copy(update=changes), tensors)


def test_what_the_manifest_says_of_several(run):
    seen = [("a", "b"), ("b", "c"), ("d",)]
    for fold, (slides, auc) in enumerate(zip(seen, (0.5, 0.7, 0.9), strict=True)):
        metrics = {"val_auc": auc} | ({"test_auc": 0.4} if fold else {})
        change_fold(run, fold, slides_seen=slides, metrics=metrics)
    document = load_folds(run, "all").training()
    assert document["metrics"] == {"val_auc": pytest.approx(0.7)}
    assert document["slides_seen"] == ["a", "b", "c", "d"]
    assert [entry["fold"] for entry in document["folds"]] == [0, 1, 2]
    assert document["folds"][1] == {
        "fold": 1,
        "seed": 1,
        "temperature": 1.5,
        "coarse_temperature": None,
        "metrics": {"val_auc": 0.7, "test_auc": 0.4},
    }
    change_fold(run, 1, slides_seen=None)
    assert load_folds(run, "all").training()["slides_seen"] is None
    assert load_folds(run, 0).training()["fold"] == 0


def test_folds_that_differ_are_not_averaged(run):
    meta, _ = load_checkpoint(fold_directory(run, 1))
    recipe, encoder = meta.recipe, meta.encoder
    finer = recipe.scales[0].model_copy(update={"mpp": 0.4})
    for name, value in {
        "labels": ("benign", "in_situ", "other"),
        "hierarchy": Hierarchy(coarse_labels=("x", "y"), parents=(0, 1, 1)),
        "recipe": recipe.model_copy(update={"scales": (finer,)}),
        "encoder": encoder.model_copy(update={"weights_sha256": "0" * 64}),
        "hyperparameters": meta.hyperparameters | {"dropout": 0.5},
        "coarse_temperature": 2.0,
    }.items():
        change_fold(run, 1, **{name: value})
        with pytest.raises(RunInvalid, match=f"folds 0 and 1 differ in {name},"):
            load_folds(run, "all")
        change_fold(run, 1, **{name: getattr(meta, name)})
    load_folds(run, "all")


def test_a_run_that_cannot_become_one_model(run):
    table = run / "predictions.csv"
    text = table.read_text()
    for changed in (
        text.replace("probability_benign", "benign"),
        text.replace("s1,1,test,in_situ", "s1,1,test,nothing"),
        text.replace("0.", "x."),
        "slide\n",
    ):
        table.write_text(changed)
        if changed == "slide\n":  # no line, so no slide that validated: not calibrated
            assert load_folds(run, "all").temperature == 1.0
        else:
            with pytest.raises(
                RunInvalid, match=r"predictions\.csv does not hold the folds' answers"
            ):
                load_folds(run, "all")
    table.unlink()
    with pytest.raises(RunInvalid, match="export one fold"):
        load_folds(run, "all")
    write_json(run / "metrics.json", {"folds": [{"fold": 0}, {"fold": 7}]})
    with pytest.raises(RunInvalid, match="fold_7"):
        load_folds(run, "all")
    (run / "metrics.json").unlink()
    with pytest.raises(RunInvalid, match="not finished"):
        load_folds(run, "all")
    with pytest.raises(FieldInvalid, match="it has 0, 1, 2"):
        load_folds(run, 3)


def test_a_fold_of_features_that_nobody_knows(run):
    change_fold(run, 2, recipe=None)
    with pytest.raises(ProvenanceUnknown, match="fold_2"):
        load_folds(run, "all")
