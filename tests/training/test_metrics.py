from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from cmamil_sdk.calibration import fit_temperature, log_loss
from cmamil_sdk.training.bootstrap import bootstrap_intervals, weighted_metrics, weighted_share
from cmamil_sdk.training.metrics import (
    Scored,
    across_folds,
    class_auc,
    macro_auc,
    score,
    softmax,
)

NAMES = ["a", "b", "c"]


def draw(n: int, seed: int = 0, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know something of the labels; rounded, so that ties occur."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.standard_normal((n, n_classes)).round(1)
    logits[np.arange(n), labels] += 1.0
    return logits, labels


def test_metrics_equal_scikit_learn() -> None:
    logits, labels = draw(80)
    probabilities, answers = softmax(logits), logits.argmax(axis=1)
    ours = score(Scored(probabilities, labels, [str(i) for i in range(80)]), NAMES)
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(labels, answers))
    assert ours["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(labels, answers)
    )
    for average, suffix in (("macro", ""), ("weighted", "_weighted")):
        p, r, f, _ = reference.precision_recall_fscore_support(labels, answers, average=average)
        assert ours[f"precision{suffix}"] == pytest.approx(p)
        assert ours[f"recall{suffix}"] == pytest.approx(r)
        assert ours[f"f1{suffix}"] == pytest.approx(f)
    assert ours["auc"] == pytest.approx(
        reference.roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    assert ours["auc_per_class"]["b"] == pytest.approx(
        reference.roc_auc_score(labels == 1, probabilities[:, 1])
    )
    averages = [
        reference.average_precision_score(labels == c, probabilities[:, c]) for c in range(3)
    ]
    assert list(ours["average_precision_per_class"].values()) == pytest.approx(averages)
    assert ours["average_precision"] == pytest.approx(np.mean(averages))
    assert ours["quadratic_kappa"] == pytest.approx(
        reference.cohen_kappa_score(labels, answers, weights="quadratic")
    )
    for name in ("precision", "recall", "f1"):
        each = getattr(reference, f"{name}_score")(labels, answers, average=None)
        assert list(ours[f"{name}_per_class"].values()) == pytest.approx(each)
    assert macro_auc(probabilities, labels) == pytest.approx(ours["auc"])
    assert ours["confusion"] == reference.confusion_matrix(labels, answers).tolist()
    assert log_loss(logits, labels) == pytest.approx(reference.log_loss(labels, probabilities))


def test_metrics_with_a_class_that_is_never_answered_equal_scikit_learn() -> None:
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    ours = score(Scored(probabilities, labels, list("abcd")), NAMES)
    p, r, f, _ = reference.precision_recall_fscore_support(
        labels, probabilities.argmax(1), average="macro", zero_division=0
    )
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx((p, r, f))


@pytest.mark.parametrize("absent", [None, 0, 2, (0, 1)])
def test_both_forms_agree_on_replicated_slides(absent: int | tuple[int, int] | None) -> None:
    """Weighted, vectorised and torchmetrics on slides repeated as often as the weights say."""
    logits, labels = draw(30)
    if absent is not None:
        labels[np.isin(labels, absent)] = 1 if absent != (0, 1) else 2
    probabilities = softmax(logits)
    weights = np.random.default_rng(1).integers(0, 4, (6, 30)).astype(float)
    weights[0] = 1.0
    weights[1, labels == labels[0]] = 0.0
    weights[1, 0] = float(len(set(labels.tolist())) == 1)
    together = weighted_metrics(probabilities, labels, weights)
    for sample, counts in enumerate(weights.astype(int)):
        repeated = Scored(
            probabilities.repeat(counts, 0), labels.repeat(counts), ["p"] * int(counts.sum())
        )
        points = score(repeated, NAMES)
        assert set(together) == {
            name
            for name, value in points.items()
            if not isinstance(value, dict | list) and name not in ("slides", "patients")
        }
        right = weighted_share(probabilities.argmax(axis=1) == labels, weights)
        assert right[sample] == pytest.approx(points["accuracy"], abs=1e-6)
        for name, values in together.items():
            expected = math.nan if points[name] is None else points[name]
            assert values[sample] == pytest.approx(expected, abs=1e-6, nan_ok=True), name


def test_what_cannot_be_known_is_none() -> None:
    """All slides of one class, all answered so: no rest to tell it from, no chance to err."""
    perfect = Scored(np.eye(3)[[0] * 4], np.zeros(4, dtype=np.int64), list("abcd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = score(perfect, NAMES)
    assert (ours["accuracy"], ours["balanced_accuracy"], ours["average_precision"]) == (1, 1, 1)
    assert ours["auc"] is None and ours["quadratic_kappa"] is None
    assert ours["recall_per_class"] == {"a": 1.0, "b": None, "c": None}
    intervals = bootstrap_intervals([perfect], samples=20)
    assert intervals["auc"] is None and intervals["accuracy"] == [1.0, 1.0]


def test_average_precision_and_kappa_by_hand() -> None:
    """Ranking + - + -: (1 + 2/3) / 2. Answers 0, 2 for truths 0, 0: the distances are 0 and 4."""
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    two = np.stack([1 - scores, scores], axis=1)
    found = weighted_metrics(two, np.array([1, 0, 1, 0]), np.ones((1, 4)))
    ours = score(Scored(two, np.array([1, 0, 1, 0]), list("abcd")), ["no", "yes"])
    assert ours["average_precision_per_class"]["yes"] == pytest.approx(5 / 6)
    assert found["average_precision"][0] == pytest.approx(ours["average_precision"])
    answers = np.eye(3)[[0, 2, 1, 2]] * 0.8 + 0.05
    kappa = weighted_metrics(answers, np.array([0, 0, 1, 2]), np.ones((1, 4)))["quadratic_kappa"]
    # seen 4; by chance truth (2, 1, 1), answers (1, 1, 2): (2 + 2*4*2 + 1 + 2 + 4 + 1) / 4
    assert kappa[0] == pytest.approx(1 - 4 / (26 / 4))


def test_an_absent_class_is_left_out_of_the_mean_auc() -> None:
    logits, labels = draw(40)
    labels[labels == 2] = 1
    aucs = class_auc(softmax(logits), labels)
    assert math.isnan(aucs[2])
    assert macro_auc(softmax(logits), labels) == pytest.approx(aucs[:2].mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(macro_auc(softmax(logits), np.zeros(40, dtype=np.int64)))
        assert math.isnan(macro_auc(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)))
    assert (
        score(Scored(softmax(logits), labels, ["p"] * 40), list("abc"))["auc_per_class"]["c"]
        is None
    )


def test_calibration_error_by_hand() -> None:
    """Four answers at .9 of which three are right: |.9 - .75|."""
    probabilities = np.array([[0.9, 0.1]] * 4)
    ours = score(Scored(probabilities, np.array([0, 0, 0, 1]), list("abcd")), ["a", "b"])
    assert ours["ece"] == pytest.approx(0.15)


def test_bootstrap_draws_patients_and_is_seeded() -> None:
    logits, labels = draw(60)
    slides = Scored(softmax(logits), labels, [str(i) for i in range(60)])
    doubled = Scored(
        softmax(logits).repeat(2, 0), labels.repeat(2), [str(i) for i in range(60) for _ in "ab"]
    )
    interval = bootstrap_intervals([slides])
    assert interval == bootstrap_intervals([slides])
    assert interval != bootstrap_intervals([slides], seed=1)
    # two equal slides of each patient are no new evidence: the interval stays as wide
    assert bootstrap_intervals([doubled])["accuracy"] == pytest.approx(interval["accuracy"])
    low, high = interval["accuracy"] or [0.0, 0.0]
    accuracy = float(np.mean(logits.argmax(1) == labels))
    assert low < accuracy < high
    # close to the normal approximation of a proportion
    assert high - low == pytest.approx(
        2 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / 60), rel=0.15
    )


def test_bootstrap_over_two_folds_is_narrower_than_over_one() -> None:
    logits, labels = draw(80)
    parts = [
        Scored(softmax(logits[rows]), labels[rows], [str(i) for i in range(40)])
        for rows in (slice(0, 40), slice(40, 80))
    ]
    one, two = bootstrap_intervals(parts[:1])["auc"], bootstrap_intervals(parts)["auc"]
    assert one is not None and two is not None
    assert two[1] - two[0] < 0.9 * (one[1] - one[0])


def test_across_folds() -> None:
    mean, std = across_folds(
        [
            {"auc": 0.8, "f1": None, "slides": 3, "confusion": []},
            {"auc": 0.6, "f1": 0.5, "slides": 9, "confusion": []},
        ]
    )
    assert mean == pytest.approx({"auc": 0.7, "f1": 0.5})
    assert std == {"auc": pytest.approx(0.1), "f1": None}
    assert across_folds([{"auc": 0.8, "f1": None}]) == (
        {"auc": 0.8, "f1": None},
        {"auc": None, "f1": None},
    )


def test_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    honest = rng.standard_normal((4000, 3)) * 2
    labels = np.array([rng.choice(3, p=p) for p in softmax(honest)])
    assert fit_temperature(honest * 3, labels) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(honest / 2, labels) == pytest.approx(0.5, rel=0.1)


def test_a_few_right_answers_do_not_make_confidence_infinite() -> None:
    logits, labels = np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), np.array([0, 1, 0])
    assert 0.5 < fit_temperature(logits, labels) < 1.0
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)) == 1.0
