"""Answers on slides, their scores, and the table of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.files import csv_text, write_atomic
from cmamil_sdk.hierarchy import Hierarchy

from .bootstrap import Float64, Int64, Scored, bootstrap_intervals
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
    """Answers of one fold's model by part (val, test), and its temperatures."""

    parts: Mapping[str, Answers]
    temperature: float
    coarse_temperature: float | None = None

    @property
    def test(self) -> Answers:
        """On the slides that neither trained nor chose the model."""
        return self.parts["test"]


def classes_of(table: LabelTable, slides: Iterable[str]) -> Int64:
    """Class numbers ``[n]`` of slides."""
    return np.array([table.class_of(slide) for slide in slides], dtype=np.int64)


def scored(answers: Answers, table: LabelTable, temperature: float) -> Scored:
    """Answers at a temperature, with truth and patients."""
    return Scored(
        softmax(answers.logits, temperature),
        classes_of(table, answers.slides),
        [table.by_slide[slide].patient for slide in answers.slides],
    )


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
    if hierarchy is None or answers.levels.coarse is None:
        return document
    levels = _levels(fold, part, table, hierarchy, answers.levels.coarse)
    coarse = score(levels.coarse, hierarchy.coarse_labels)
    document |= {f"coarse_{name}": coarse[name] for name in (*_COARSE_METRICS, "confusion")}
    for name, agreement in (("parent_accuracy", levels.parent), ("levels_agree", levels.agreement)):
        document[name] = score(agreement, hierarchy.coarse_labels)["accuracy"]
    return document


def summarise(
    model: str,
    documents: Sequence[Mapping[str, Any]],
    table: LabelTable,
    folds: Mapping[int, FoldAnswers],
    hierarchy: Hierarchy | None = None,
) -> dict[str, Any]:
    """The document of ``metrics.json`` but for its seconds; ``documents`` are its folds."""
    mean, std = across_folds([document["test"] for document in documents])
    return {
        "model": model,
        "labels": list(table.labels),
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
    found = bootstrap_intervals([scored(m.test, table, m.temperature) for m in models])
    uncalibrated = bootstrap_intervals([scored(m.test, table, 1.0) for m in models])
    found["ece_uncalibrated"] = uncalibrated["ece"]
    levels = [
        _levels(m, "test", table, hierarchy, m.test.levels.coarse)
        for m in models
        if hierarchy is not None and m.test.levels.coarse is not None
    ]
    if not levels:
        return found
    coarse = bootstrap_intervals([level.coarse for level in levels])
    found |= {f"coarse_{name}": coarse[name] for name in _COARSE_METRICS}
    parent = bootstrap_intervals([level.parent for level in levels])
    agreement = bootstrap_intervals([level.agreement for level in levels])
    return found | {
        "parent_accuracy": parent["accuracy"],
        "levels_agree": agreement["accuracy"],
    }


@dataclass(frozen=True)
class _Levels:
    """The coarse answer against the truth; the fine answer's parent against it; and both answers."""

    coarse: Scored
    parent: Scored
    agreement: Scored


def _levels(
    fold: FoldAnswers, part: str, table: LabelTable, hierarchy: Hierarchy, logits: Float64
) -> _Levels:
    """Both levels of one part of a fold, whose coarse logits are ``logits [n, Cc]``."""
    fine = scored(fold.parts[part], table, fold.temperature)
    parents = np.array(hierarchy.parents, dtype=np.int64)
    truth = parents[fine.labels]
    coarse = softmax(logits, fold.coarse_temperature or 1.0)
    answered = np.eye(coarse.shape[1])[parents[fine.probabilities.argmax(axis=1)]]
    return _Levels(
        Scored(coarse, truth, fine.patients),
        Scored(answered, truth, fine.patients),
        Scored(answered, coarse.argmax(axis=1), fine.patients),
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
            columns = [_with_answer(answers.logits, fold.temperature, table.labels)]
            if hierarchy is not None and answers.levels.coarse is not None:
                columns.append(
                    _with_answer(
                        answers.levels.coarse,
                        fold.coarse_temperature or 1.0,
                        hierarchy.coarse_labels,
                    )
                )
            for slide, *cells in zip(answers.slides, *columns, strict=True):
                values = [value for group in cells for value in group]
                lines.append([slide, number, part, table.by_slide[slide].label, *values])
    write_atomic(path, csv_text(header, lines).encode())


def _with_answer(
    logits: Float64, temperature: float, names: Sequence[str]
) -> list[list[float | str]]:
    """Probabilities of each slide, then the name of the largest."""
    probabilities = softmax(logits, temperature)
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
