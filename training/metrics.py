"""How good probabilities are: one set of numbers, and bootstrap intervals over patients.

Everything is computed on weighted slides, ``weights [B, n]``, one row per bootstrap sample; a plain
score is the row of ones. What cannot be computed, such as the AUC of an absent class, is NaN and is
left out of averages.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scored:
    """Slides with their answers.

    Attributes:
        probabilities: ``[n, C]``, rows sum to 1.
        labels: ``[n]`` class numbers.
        patients: ``[n]`` patient of each slide.
    """

    probabilities: Float64
    labels: Int64
    patients: Sequence[str]


def softmax(logits: Float64, temperature: float = 1.0) -> Float64:
    """Probabilities ``[n, C]`` of ``logits [n, C]`` divided by ``temperature``."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def log_loss(logits: Float64, labels: Int64, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood; NaN without slides."""
    if not len(labels):
        return math.nan
    scaled = logits / temperature
    top = scaled.max(axis=1)
    log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float(np.mean(log_sum - scaled[np.arange(len(labels)), labels]))


def class_auc(probabilities: Float64, labels: Int64, weights: Float64 | None = None) -> Float64:
    """One-vs-rest area under the ROC curve per class.

    Args:
        probabilities: ``[n, C]``, any scores whose order counts.
        labels: ``[n]``.
        weights: ``[B, n]``, how often each slide is counted; None: once.

    Returns:
        ``[B, C]``, NaN where a class or its complement has no weight.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    columns = [
        _binary_auc(probabilities[:, c], labels == c, weights)
        for c in range(probabilities.shape[1])
    ]
    return np.stack(columns, axis=1)


def macro_auc(probabilities: Float64, labels: Int64) -> float:
    """Mean of the one-vs-rest AUCs that are defined; NaN if none is."""
    return float(_nanmean(class_auc(probabilities, labels))[0])


def summary_metrics(
    probabilities: Float64, labels: Int64, weights: Float64 | None = None
) -> dict[str, Float64]:
    """Each scalar metric ``[B]``.

    ``precision``, ``recall`` and ``f1`` are means over the classes that occur in truth or
    prediction (macro), ``*_weighted`` weigh them by their slides; ``balanced_accuracy`` is the mean
    recall of the classes that occur in truth; ``auc`` is the mean one-vs-rest AUC.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    confusion = _confusion(probabilities, labels, weights)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truth, answered = confusion.sum(axis=2), confusion.sum(axis=1)
    precision, recall = _ratio(hits, answered), _ratio(hits, truth)
    f1 = _ratio(2 * hits, truth + answered)
    occurs = (truth + answered) > 0
    metrics = {
        "accuracy": hits.sum(axis=1) / truth.sum(axis=1),
        "balanced_accuracy": _nanmean(np.where(truth > 0, recall, np.nan)),
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[name] = _nanmean(np.where(occurs, values, np.nan))
        metrics[f"{name}_weighted"] = (values * truth).sum(axis=1) / truth.sum(axis=1)
    metrics["auc"] = _nanmean(class_auc(probabilities, labels, weights))
    return metrics


def score(scored: Scored, names: Sequence[str]) -> dict[str, Any]:
    """All metrics of one set of slides, JSON-able (NaN becomes None).

    Beside :func:`summary_metrics`: ``slides``, ``patients``, ``ece``, ``auc_per_class`` by label
    name, and ``confusion`` (rows truth, columns prediction, in the order of ``names``).
    """
    probabilities, labels = scored.probabilities, scored.labels
    scalars = {name: values[0] for name, values in summary_metrics(probabilities, labels).items()}
    aucs = class_auc(probabilities, labels)[0]
    confusion = _confusion(probabilities, labels, np.ones((1, len(labels))))[0]
    return {
        "slides": len(labels),
        "patients": len(set(scored.patients)),
        **{name: finite_or_none(value) for name, value in scalars.items()},
        "ece": finite_or_none(calibration_error(probabilities, labels)),
        "auc_per_class": {
            name: finite_or_none(value) for name, value in zip(names, aucs, strict=True)
        },
        "confusion": confusion.astype(int).tolist(),
    }


def calibration_error(probabilities: Float64, labels: Int64) -> float:
    """Expected calibration error over 15 equal bins of the top probability."""
    error = multiclass_calibration_error(
        torch.from_numpy(probabilities),
        torch.from_numpy(labels),
        num_classes=probabilities.shape[1],
        n_bins=CALIBRATION_BINS,
        norm="l1",
    )
    return float(error)


def bootstrap_intervals(
    parts: Sequence[Scored], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, list[float] | None]:
    """Percentile intervals of each scalar metric, averaged over ``parts`` (the folds' test sets).

    Patients are drawn with replacement within each part, all slides of a patient together. None
    where a metric is defined in no sample.
    """
    rng = np.random.default_rng(seed)
    sampled: dict[str, list[Float64]] = {}
    for part in parts:
        _, patient_of = np.unique(np.asarray(part.patients), return_inverse=True)
        n = int(patient_of.max()) + 1
        counts = rng.multinomial(n, np.full(n, 1.0 / n), size=samples).astype(np.float64)
        weights = counts[:, patient_of]
        for name, values in summary_metrics(part.probabilities, part.labels, weights).items():
            sampled.setdefault(name, []).append(values)
    tail = (1.0 - level) / 2.0
    intervals: dict[str, list[float] | None] = {}
    for name, columns in sampled.items():
        means = _nanmean(np.stack(columns, axis=1))
        defined = means[np.isfinite(means)]
        intervals[name] = (
            [float(q) for q in np.quantile(defined, [tail, 1.0 - tail])] if defined.size else None
        )
    return intervals


def across_folds(folds: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean and population standard deviation of each scalar metric over folds (None: nowhere)."""
    mean: dict[str, Any] = {}
    std: dict[str, Any] = {}
    for name, first in folds[0].items():
        if isinstance(first, dict | list) or name in {"slides", "patients"}:
            continue
        values = [fold[name] for fold in folds if fold[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
        std[name] = float(np.std(values)) if values else None
    return mean, std


def finite_or_none(value: float) -> float | None:
    """``value`` as a plain float, None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None


def _binary_auc(scores: Float64, positive: npt.NDArray[np.bool_], weights: Float64) -> Float64:
    """Weighted share ``[B]`` of positive-negative pairs in the right order, ties half."""
    if not scores.size:
        return np.full(len(weights), np.nan)
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    up = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    down = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = np.cumsum(down, axis=1) - down
    pairs = up.sum(axis=1) * down.sum(axis=1)
    won = (up * (below + 0.5 * down)).sum(axis=1)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)


def _confusion(probabilities: Float64, labels: Int64, weights: Float64) -> Float64:
    """``[B, C, C]``, rows truth, columns prediction."""
    n_classes = probabilities.shape[1]
    cell = labels * n_classes + probabilities.argmax(axis=1)
    onehot = np.eye(n_classes * n_classes)[cell]
    counts: Float64 = (weights @ onehot).reshape(-1, n_classes, n_classes)
    return counts


def _ratio(part: Float64, whole: Float64) -> Float64:
    ratio: Float64 = part / np.where(whole > 0, whole, 1.0)
    return ratio


def _nanmean(values: Float64) -> Float64:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # all NaN: the mean is NaN
        mean: Float64 = np.nanmean(values, axis=1)
    return mean


__all__ = [
    "Scored",
    "across_folds",
    "bootstrap_intervals",
    "calibration_error",
    "class_auc",
    "finite_or_none",
    "log_loss",
    "macro_auc",
    "score",
    "softmax",
    "summary_metrics",
]
