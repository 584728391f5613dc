from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from cmamil_sdk.training.calibration import fit_temperature
from cmamil_sdk.training.metrics import (
    Scored,
    across_folds,
    bootstrap_intervals,
    class_auc,
    log_loss,
    macro_auc,
    score,
    softmax,
    summary_metrics,
)


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
    ours = score(Scored(probabilities, labels, [str(i) for i in range(80)]), ["a", "b", "c"])
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
    assert ours["confusion"] == reference.confusion_matrix(labels, answers).tolist()
    assert log_loss(logits, labels) == pytest.approx(reference.log_loss(labels, probabilities))


def test_metrics_with_a_class_that_is_never_answered_equal_scikit_learn() -> None:
    labels = np.array([0, 0, 1, 2])
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    ours = score(Scored(probabilities, labels, list("abcd")), ["a", "b", "c"])
    p, r, f, _ = reference.precision_recall_fscore_support(
        labels, probabilities.argmax(1), average="macro", zero_division=0
    )
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx((p, r, f))


def test_weights_count_slides_as_often_as_they_say() -> None:
    logits, labels = draw(30)
    weights = np.random.default_rng(1).integers(0, 4, (5, 30)).astype(float)
    together = summary_metrics(softmax(logits), labels, weights)
    for sample, counts in enumerate(weights.astype(int)):
        repeated = summary_metrics(softmax(logits).repeat(counts, 0), labels.repeat(counts))
        for name, values in repeated.items():
            assert together[name][sample] == pytest.approx(values[0]), name


def test_an_absent_class_is_left_out_of_the_mean_auc() -> None:
    logits, labels = draw(40)
    labels[labels == 2] = 1
    aucs = class_auc(softmax(logits), labels)[0]
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
    assert std == pytest.approx({"auc": 0.1, "f1": 0.0})


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
