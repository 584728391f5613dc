"""Confidence intervals: patients drawn again and again, all metrics of all samples at once.

The metrics here are those of :mod:`~cmamil_sdk.training.metrics`, which leaves their point values to
torchmetrics, in forms that take weights ``[B, n]``: how often each of n slides is counted in each of
B bootstrap samples. What cannot be computed, such as the AUC of an absent class, is NaN and is left
out of averages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CALIBRATION_BINS = 15

Metrics = Callable[[Float64], Mapping[str, Float64]]
"""Each metric ``[B]`` of n slides for ``weights [B, n]``."""


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


def bootstrap_intervals(
    parts: Sequence[Scored], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, list[float] | None]:
    """Percentile intervals of each scalar metric, averaged over ``parts`` (the folds' test sets).

    Patients are drawn with replacement within each part, all slides of a patient together. None
    where a metric is defined in no sample.
    """
    return intervals_of(
        [part.patients for part in parts],
        [partial(weighted_metrics, part.probabilities, part.labels) for part in parts],
        samples=samples,
        level=level,
        seed=seed,
    )


def intervals_of(
    patients: Sequence[Sequence[str]],
    metrics: Sequence[Metrics],
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, list[float] | None]:
    """As :func:`bootstrap_intervals`, of any ``metrics``; both arguments have one for each part."""
    rng = np.random.default_rng(seed)
    sampled: dict[str, list[Float64]] = {}
    for owners, metrics_of in zip(patients, metrics, strict=True):
        _, patient_of = np.unique(np.asarray(owners), return_inverse=True)
        n = int(patient_of.max()) + 1
        counts = rng.multinomial(n, np.full(n, 1.0 / n), size=samples).astype(np.float64)
        for name, values in metrics_of(counts[:, patient_of]).items():
            sampled.setdefault(name, []).append(values)
    tail = (1.0 - level) / 2.0
    intervals: dict[str, list[float] | None] = {}
    for name, columns in sampled.items():
        means = mean_of_known(np.stack(columns, axis=1))
        defined = means[np.isfinite(means)]
        intervals[name] = (
            [float(q) for q in np.quantile(defined, [tail, 1.0 - tail])] if defined.size else None
        )
    return intervals


def weighted_metrics(probabilities: Float64, labels: Int64, weights: Float64) -> dict[str, Float64]:
    """Each scalar metric ``[B]`` of ``probabilities [n, C]``, ``labels [n]``, ``weights [B, n]``."""
    confusion = _confusion(probabilities, labels, weights)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    truth, answered = confusion.sum(axis=2), confusion.sum(axis=1)
    precision, recall = _ratio(hits, answered), _ratio(hits, truth)
    f1 = _ratio(2 * hits, truth + answered)
    occurs = (truth + answered) > 0
    metrics = {
        "accuracy": hits.sum(axis=1) / truth.sum(axis=1),
        "balanced_accuracy": mean_of_known(np.where(truth > 0, recall, np.nan)),
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[name] = mean_of_known(np.where(occurs, values, np.nan))
        metrics[f"{name}_weighted"] = (values * truth).sum(axis=1) / truth.sum(axis=1)
    ranked = _one_vs_rest(probabilities, labels, weights)
    metrics["auc"], metrics["average_precision"] = (mean_of_known(values) for values in ranked)
    metrics["quadratic_kappa"] = _quadratic_kappa(confusion)
    metrics["ece"] = weighted_calibration_error(probabilities, labels, weights)
    return metrics


def weighted_auc(probabilities: Float64, labels: Int64, weights: Float64) -> Float64:
    """One-vs-rest area under the ROC curve per class ``[B, C]``, NaN without it or the rest."""
    return _one_vs_rest(probabilities, labels, weights)[0]


def mean_of_known(values: Float64) -> Float64:
    """Mean ``[B]`` of the numbers in each row of ``values [B, C]``; NaN where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # all NaN: the mean is NaN
        mean: Float64 = np.nanmean(values, axis=1)
    return mean


def _one_vs_rest(
    probabilities: Float64, labels: Int64, weights: Float64
) -> tuple[Float64, Float64]:
    """Area under the ROC curve and average precision ``[B, C]`` of each class against the rest."""
    ranked = [
        _ranked_metrics(probabilities[:, c], labels == c, weights)
        for c in range(probabilities.shape[1])
    ]
    areas, precisions = zip(*ranked, strict=True)
    return np.stack(areas, axis=1), np.stack(precisions, axis=1)


def _ranked_metrics(
    scores: Float64, positive: npt.NDArray[np.bool_], weights: Float64
) -> tuple[Float64, Float64]:
    """Area under the ROC curve and average precision ``[B]`` of one class against the rest.

    The area is the share of positive-negative pairs in the right order, ties half. The average
    precision is the precision at each threshold, weighed by the recall that it adds.
    """
    if not scores.size:
        nothing = np.full(len(weights), np.nan)
        return nothing, nothing
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    up = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    down = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    n_up, n_down = up.sum(axis=1), down.sum(axis=1)
    found, alarms = np.cumsum(up, axis=1), np.cumsum(down, axis=1)
    won = (up * (n_down[:, None] - alarms + 0.5 * down)).sum(axis=1)
    area = np.where(n_up * n_down > 0, _ratio(won, n_up * n_down), np.nan)
    gained = (up * _ratio(found, found + alarms)).sum(axis=1)
    return area, np.where(n_up > 0, _ratio(gained, n_up), np.nan)


def _quadratic_kappa(confusion: Float64) -> Float64:
    """Cohen's kappa ``[B]`` with squared distance of classes; NaN where chance cannot err."""
    n_classes = confusion.shape[1]
    distance = np.subtract.outer(np.arange(n_classes), np.arange(n_classes)).astype(float) ** 2
    truth, answered = confusion.sum(axis=2), confusion.sum(axis=1)
    by_chance = truth[:, :, None] * answered[:, None, :] / confusion.sum(axis=(1, 2))[:, None, None]
    seen, expected = (distance * confusion).sum((1, 2)), (distance * by_chance).sum((1, 2))
    return np.where(expected > 0, 1.0 - _ratio(seen, expected), np.nan)


def weighted_share(hits: npt.NDArray[np.bool_], weights: Float64) -> Float64:
    """Share ``[B]`` of slides that ``hits [n]``."""
    share: Float64 = (weights @ hits) / weights.sum(axis=1)
    return share


def weighted_calibration_error(probabilities: Float64, labels: Int64, weights: Float64) -> Float64:
    """Mean gap ``[B]`` between top probability and accuracy over equal bins of the former."""
    top = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)
    bins = np.clip(np.searchsorted(edges, top, side="right") - 1, 0, CALIBRATION_BINS - 1)
    membership = np.eye(CALIBRATION_BINS)[bins]
    gap = np.abs((weights * (top - right)) @ membership).sum(axis=1)
    error: Float64 = gap / weights.sum(axis=1)
    return error


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


__all__ = [
    "CALIBRATION_BINS",
    "Float64",
    "Int64",
    "Scored",
    "bootstrap_intervals",
    "intervals_of",
    "mean_of_known",
    "weighted_auc",
    "weighted_calibration_error",
    "weighted_metrics",
    "weighted_share",
]
