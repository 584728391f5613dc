"""How good probabilities are: point values by torchmetrics, with NaN where a class is absent.

What cannot be computed, such as the AUC of a class that no slide has, is NaN and is left out of
averages; torchmetrics would call it 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .bootstrap import CALIBRATION_BINS, Float64, Int64, Scored, mean_of_known, weighted_auc
from .torchmetrics_import import tm

COUNTS = ("slides", "patients")
"""Entries of a score that are no metrics."""


def softmax(logits: Float64, temperature: float = 1.0) -> Float64:
    """Probabilities ``[n, C]`` of ``logits [n, C]`` divided by ``temperature``."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def class_auc(probabilities: Float64, labels: Int64) -> Float64:
    """One-vs-rest area under the ROC curve per class ``[C]``, NaN without it or without the rest."""
    n_classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    return _per_class(
        tm.multiclass_auroc, probabilities, labels, (counts > 0) & (counts < len(labels))
    )


def class_average_precision(probabilities: Float64, labels: Int64) -> Float64:
    """One-vs-rest average precision per class ``[C]``, NaN without slides of it."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    return _per_class(tm.multiclass_average_precision, probabilities, labels, counts > 0)


def macro_auc(probabilities: Float64, labels: Int64) -> float:
    """Mean of the one-vs-rest AUCs that are defined; NaN if none is.

    Counted in pairs rather than by torchmetrics, so that equal rankings have equal bits: the choice
    of an epoch asks whether two values are the same.
    """
    return float(mean_of_known(weighted_auc(probabilities, labels, np.ones((1, len(labels)))))[0])


def calibration_error(probabilities: Float64, labels: Int64) -> float:
    """Expected calibration error over 15 equal bins of the top probability."""
    error = tm.multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=probabilities.shape[1],
        n_bins=CALIBRATION_BINS,
        norm="l1",
    )
    return float(error)


def score(scored: Scored, names: Sequence[str]) -> dict[str, Any]:
    """All metrics of one set of slides, JSON-able (NaN becomes None).

    ``slides`` and ``patients``; ``accuracy``; ``balanced_accuracy``, the mean recall of the classes
    that occur in truth; ``precision``, ``recall`` and ``f1``, means over the classes that occur in
    truth or prediction, and ``*_weighted``, weighed by the classes' slides; ``auc`` and
    ``average_precision``, means of the one-vs-rest values; ``quadratic_kappa``, for which the
    classes' order is that of ``names``; ``ece``; each ``*_per_class`` by label name; ``confusion``
    (rows truth, columns prediction, in the order of ``names``).
    """
    probabilities, labels = scored.probabilities, scored.labels
    n_classes = len(names)
    answers = torch.from_numpy(probabilities.argmax(axis=1))
    truth = torch.from_numpy(labels)
    confusion = tm.multiclass_confusion_matrix(answers, truth, n_classes).numpy()
    slides, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    document: dict[str, Any] = {
        "slides": len(labels),
        "patients": len(set(scored.patients)),
        "accuracy": float(tm.multiclass_accuracy(answers, truth, n_classes, average="micro")),
    }
    per_class = {
        name: function(answers, truth, n_classes, average=None).double().numpy()
        for name, function in (
            ("precision", tm.multiclass_precision),
            ("recall", tm.multiclass_recall),
            ("f1", tm.multiclass_f1_score),
        )
    }
    document["balanced_accuracy"] = _mean(per_class["recall"], slides > 0)
    for name, values in per_class.items():
        document[name] = _mean(values, slides + answered > 0)
        document[f"{name}_weighted"] = float(np.average(values, weights=slides))
    per_class["auc"] = class_auc(probabilities, labels)
    per_class["average_precision"] = class_average_precision(probabilities, labels)
    for name in ("auc", "average_precision"):
        document[name] = _mean(per_class[name], np.isfinite(per_class[name]))
    document["quadratic_kappa"] = _quadratic_kappa(answers, truth, n_classes)
    document["ece"] = finite_or_none(calibration_error(probabilities, labels))
    for name, values in per_class.items():
        known = slides + answered > 0 if name in ("precision", "f1") else slides > 0
        document[f"{name}_per_class"] = {
            label: finite_or_none(value) if occurs else None
            for label, value, occurs in zip(names, values, known, strict=True)
        }
    document["confusion"] = confusion.tolist()
    return document


def across_folds(folds: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and population standard deviation of each scalar metric over folds.

    None: a mean of no value, or a deviation of fewer than two.
    """
    mean: dict[str, Any] = {}
    std: dict[str, Any] = {}
    for name, first in folds[0].items():
        if isinstance(first, dict | list) or name in COUNTS:
            continue
        values = [fold[name] for fold in folds if fold[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
        std[name] = float(np.std(values)) if len(values) > 1 else None
    return mean, std


def finite_or_none(value: float) -> float | None:
    """``value`` as a plain float, None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _per_class(function: Any, probabilities: Float64, labels: Int64, known: Any) -> Float64:
    """A one-vs-rest metric of torchmetrics ``[C]``, NaN where it is not ``known [C]``."""
    n_classes = probabilities.shape[1]
    if not known.any():
        return np.full(n_classes, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=UserWarning)  # absent classes, which become NaN
        values = function(
            torch.from_numpy(probabilities), torch.from_numpy(labels), n_classes, average=None
        )
    return np.where(known, values.double().numpy(), math.nan)


def _quadratic_kappa(answers: torch.Tensor, truth: torch.Tensor, n_classes: int) -> float | None:
    kappa = tm.multiclass_cohen_kappa(answers, truth, n_classes, weights="quadratic")
    return finite_or_none(float(kappa))


def _mean(values: Float64, known: Any) -> float | None:
    return float(values[known].mean()) if known.any() else None


__all__ = [
    "COUNTS",
    "Scored",
    "across_folds",
    "calibration_error",
    "class_auc",
    "class_average_precision",
    "finite_or_none",
    "macro_auc",
    "score",
    "softmax",
]
