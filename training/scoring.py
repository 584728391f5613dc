"""Answers on slides, their scores, and the table of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.files import csv_text, write_atomic
from cmamil_sdk.hierarchy import Hierarchy

from .bootstrap import (
    Float64,
    Int64,
    Scored,
    intervals_of,
    weighted_calibration_error,
    weighted_metrics,
    weighted_share,
)
from .fit import Logits
from .labels import LabelTable
from .metrics import across_folds, calibration_error, finite_or_none, score, softmax

_COARSE_METRICS = ("accuracy", "balanced_accuracy", "auc", "ece")


@dataclass(frozen=True)
class Answers:
    """Logits ``[n, C]`` of the slides of one part of one fold, and ``[n, Cc]`` of HMIL."""

    slides: tuple[str, ...]
    levels: Logits

    @property
    def logits(self) -> Float64:
        """Of the labels themselves."""
        return self.levels.fine


@dataclass(frozen=True)
class FoldAnswers:
    """Answers of one fold's model by part (val, test), and its temperatures.

    Without ``coarse_temperature`` the coarse answer is not the model's own, but the sums of the
    labels' probabilities.
    """

    parts: Mapping[str, Answers]
    temperature: float
    coarse_temperature: float | None = None

    @property
    def test(self) -> Answers:
        """On the slides that neither trained nor chose the model."""
        return self.parts["test"]

    def coarse_probabilities(self, part: str, hierarchy: Hierarchy) -> Float64:
        """Of the coarse classes ``[n, Cc]``, calibrated."""
        levels = self.parts[part].levels
        if levels.coarse is None or self.coarse_temperature is None:
            return hierarchy.summed(softmax(levels.fine, self.temperature))
        return softmax(levels.coarse, self.coarse_temperature)


def classes_of(table: LabelTable, slides: Iterable[str]) -> Int64:
    """Class numbers ``[n]`` of slides."""
    return np.array([table.class_of(slide) for slide in slides], dtype=np.int64)


def scored(answers: Answers, table: LabelTable, temperature: float) -> Scored:
    """Answers at a temperature, with truth and patients."""
    truth = classes_of(table, answers.slides)
    return Scored(softmax(answers.logits, temperature), truth, patients_of(answers, table))


def patients_of(answers: Answers, table: LabelTable) -> list[str]:
    """The patient of each slide."""
    return [table.by_slide[slide].patient for slide in answers.slides]


def score_levels(
    fold: FoldAnswers, part: str, table: LabelTable, hierarchy: Hierarchy | None
) -> dict[str, Any]:
    """All metrics of one part of a fold, and ``ece_uncalibrated``, the ``ece`` at temperature 1.

    With a hierarchy also ``coarse_accuracy``, ``coarse_balanced_accuracy``, ``coarse_auc``,
    ``coarse_ece`` and ``coarse_confusion`` of the coarse answer, ``parent_accuracy`` (is the fine
    answer's parent right?) and ``levels_agree`` (is it the coarse answer?).
    """
    answers = fold.parts[part]
    fine = scored(answers, table, fold.temperature)
    document = score(fine, table.labels)
    uncalibrated = calibration_error(softmax(answers.logits), fine.labels)
    document["ece_uncalibrated"] = finite_or_none(uncalibrated)
    if hierarchy is None:
        return document
    levels = _levels(fold, part, table, hierarchy)
    coarse = score(levels.coarse, hierarchy.coarse_labels)
    document |= {f"coarse_{name}": coarse[name] for name in (*_COARSE_METRICS, "confusion")}
    return document | {name: float(hits.mean()) for name, hits in levels.hits.items()}


def summarise(
    model: str,
    documents: Sequence[Mapping[str, Any]],
    table: LabelTable,
    folds: Mapping[int, FoldAnswers],
    hierarchy: Hierarchy | None = None,
) -> dict[str, Any]:
    """The document of ``metrics.json`` but for its seconds; ``documents`` are its folds.

    With a hierarchy ``coarse_answer`` says where that comes from: ``own`` or ``summed``.
    """
    mean, std = across_folds([document["test"] for document in documents])
    own = all(fold.coarse_temperature is not None for fold in folds.values())
    origin = {} if hierarchy is None else {"coarse_answer": "own" if own else "summed"}
    return {
        "model": model,
        "labels": list(table.labels),
        **origin,
        "folds": list(documents),
        "mean": mean,
        "std": std,
        "ci95": _intervals(table, folds, hierarchy),
    }


def _intervals(
    table: LabelTable, folds: Mapping[int, FoldAnswers], hierarchy: Hierarchy | None
) -> dict[str, list[float] | None]:
    """Of each metric that :func:`score_levels` makes."""
    models = list(folds.values())
    return intervals_of(
        [patients_of(model.test, table) for model in models],
        [partial(_weighted, model, table, hierarchy) for model in models],
    )


def _weighted(
    fold: FoldAnswers, table: LabelTable, hierarchy: Hierarchy | None, weights: Float64
) -> dict[str, Float64]:
    """The scalar metrics ``[B]`` of :func:`score_levels` on test slides, for ``weights [B, n]``."""
    fine = scored(fold.test, table, fold.temperature)
    found = weighted_metrics(fine.probabilities, fine.labels, weights)
    uncalibrated = softmax(fold.test.logits)
    found["ece_uncalibrated"] = weighted_calibration_error(uncalibrated, fine.labels, weights)
    if hierarchy is None:
        return found
    levels = _levels(fold, "test", table, hierarchy)
    coarse = weighted_metrics(levels.coarse.probabilities, levels.coarse.labels, weights)
    found |= {f"coarse_{name}": coarse[name] for name in _COARSE_METRICS}
    return found | {name: weighted_share(hits, weights) for name, hits in levels.hits.items()}


@dataclass(frozen=True)
class _Levels:
    """The coarse answer, and slide by slide ``[n]`` whether what a metric asks is true."""

    coarse: Scored
    hits: Mapping[str, npt.NDArray[np.bool_]]


def _levels(fold: FoldAnswers, part: str, table: LabelTable, hierarchy: Hierarchy) -> _Levels:
    """Both levels of one part of a fold."""
    answers = fold.parts[part]
    parents = np.array(hierarchy.parents, dtype=np.int64)
    truth = parents[classes_of(table, answers.slides)]
    coarse = fold.coarse_probabilities(part, hierarchy)
    parent = parents[answers.logits.argmax(axis=1)]
    return _Levels(
        Scored(coarse, truth, patients_of(answers, table)),
        {"parent_accuracy": parent == truth, "levels_agree": parent == coarse.argmax(axis=1)},
    )


def write_predictions(
    path: Path,
    table: LabelTable,
    folds: Mapping[int, FoldAnswers],
    hierarchy: Hierarchy | None = None,
) -> None:
    """Write ``predictions.csv``: calibrated probabilities of each fold's val and test slides.

    Columns slide, fold, split, label, ``probability_<label>`` of each label, prediction; with a
    hierarchy also ``coarse_probability_<coarse label>`` of each, coarse_prediction.
    """
    levels = [("", table.labels)]
    if hierarchy is not None:
        levels.append(("coarse_", hierarchy.coarse_labels))
    header = ["slide", "fold", "split", "label"]
    for prefix, names in levels:
        header += [*(f"{prefix}probability_{name}" for name in names), f"{prefix}prediction"]
    lines: list[list[Any]] = []
    for number, fold in folds.items():
        for part, answers in fold.parts.items():
            columns = [_with_answer(softmax(answers.logits, fold.temperature), table.labels)]
            if hierarchy is not None:
                coarse = fold.coarse_probabilities(part, hierarchy)
                columns.append(_with_answer(coarse, hierarchy.coarse_labels))
            for slide, *cells in zip(answers.slides, *columns, strict=True):
                values = [value for group in cells for value in group]
                lines.append([slide, number, part, table.by_slide[slide].label, *values])
    write_atomic(path, csv_text(header, lines).encode())


def _with_answer(probabilities: Float64, names: Sequence[str]) -> list[list[float | str]]:
    """Probabilities of each slide, then the name of the largest."""
    return [[*row.tolist(), names[int(row.argmax())]] for row in probabilities]


__all__ = [
    "Answers",
    "FoldAnswers",
    "classes_of",
    "score_levels",
    "scored",
    "summarise",
    "write_predictions",
]
