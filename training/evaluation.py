"""What the folds of a run answer: models from checkpoints, their scores, and the files on them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.errors import LabelsInvalid, RecipeMismatch
from cmamil_sdk.files import write_atomic
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import restore_model
from cmamil_sdk.runs import CheckpointMeta, fold_directory, load_checkpoint

from .bootstrap import Float64, Int64, Scored, bootstrap_intervals
from .config import TrainConfig
from .fit import Logits, predict_levels
from .inputs import Features, open_input
from .labels import LabelTable
from .layouts.base import Layout
from .metrics import across_folds, calibration_error, finite_or_none, score, softmax
from .record import RunRecord
from .split_files import read_splits
from .splits import SplitRow, fold_numbers, slides_of
from .store import FeatureStore

_EVALUATED = ("val", "test")
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


def load_model(folder: Path) -> tuple[MILModel, CheckpointMeta]:
    """The trained model of one fold directory, in evaluation mode, and its description.

    Raises:
        RunInvalid: the checkpoint is missing, damaged, or of another model.
    """
    meta, tensors = load_checkpoint(folder)
    return restore_model(meta.model_kind, meta.hyperparameters, tensors, where=folder), meta


def evaluate(run: Path, *, features: Features, labels: Path | None = None) -> dict[str, Any]:
    """Score a run's folds again on their test slides; the input is given as to training.

    Returns:
        A document like ``metrics.json``, without "seconds" of training.

    Raises:
        RunInvalid: the run is incomplete or damaged.
        LabelsInvalid, FeatureFileInvalid, RecipeMismatch: the input does not fit the run.
    """
    record = RunRecord.read(run)
    layout, table = open_input(features, labels, record.config.scales)
    if table.labels != record.labels:
        raise LabelsInvalid(
            f"{table.path} has the labels {', '.join(table.labels)}, the run {run} was trained on "
            f"{', '.join(record.labels)}; name the labels it was trained with."
        )
    rows = read_splits(run / "splits.csv", table)
    store = open_store(record.config, layout, table)
    if store.origin.recipe_key != record.recipe_key:
        raise RecipeMismatch(
            f"{layout.place} was made by another recipe or encoder than the features that {run} was "
            "trained on; extract features as for the training."
        )
    answers, temperatures, folds = {}, {}, []
    for fold in fold_numbers(rows):
        answers[fold] = answers_of_fold(run, fold, store, rows, record)
        meta = load_checkpoint(fold_directory(run, fold))[0]
        temperatures[fold] = meta.temperature
        test = score_levels(
            answers[fold]["test"], table, meta.temperature, meta.hierarchy, meta.coarse_temperature
        )
        folds.append({"fold": fold, "test": test})
    return summarise(record.config.model, folds, table, answers, temperatures)


def open_store(config: TrainConfig, layout: Layout, table: LabelTable) -> FeatureStore:
    """The features that a configuration trains on, checked."""
    return FeatureStore.open(
        layout,
        table,
        cache_mb=config.cache_mb,
        ignore_unlabelled=config.ignore_unlabelled,
    )


def answers_of_fold(
    run: Path,
    fold: int,
    store: FeatureStore,
    rows: Sequence[SplitRow],
    record: RunRecord,
) -> dict[str, Answers]:
    """Answers of a trained fold, from its checkpoint, on its val and test slides."""
    model, _ = load_model(fold_directory(run, fold))
    return answers_of(model, store, rows, fold, record.config)


def answers_of(
    model: MILModel,
    store: FeatureStore,
    rows: Sequence[SplitRow],
    fold: int,
    config: TrainConfig,
) -> dict[str, Answers]:
    """Answers of ``model`` on the val and test slides of a fold."""
    parts = {part: slides_of(rows, fold, part) for part in _EVALUATED}
    return {
        part: Answers(tuple(slides), predict_levels(model, store.bags(slides), config))
        for part, slides in parts.items()
    }


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
    answers: Answers,
    table: LabelTable,
    temperature: float,
    hierarchy: Hierarchy | None,
    coarse_temperature: float | None,
) -> dict[str, Any]:
    """All metrics of one part of a fold, and ``ece_uncalibrated``, the ``ece`` at temperature 1.

    With a hierarchy also ``coarse_accuracy``, ``coarse_balanced_accuracy``, ``coarse_auc`` and
    ``coarse_ece`` of the coarse answer, ``parent_accuracy`` (is the fine answer's parent right?)
    and ``levels_agree`` (is it the coarse answer?).
    """
    fine = scored(answers, table, temperature)
    document = score(fine, table.labels)
    uncalibrated = calibration_error(softmax(answers.logits), fine.labels)
    document["ece_uncalibrated"] = finite_or_none(uncalibrated)
    logits = answers.levels.coarse
    if hierarchy is None or logits is None:
        return document
    parents = np.array(hierarchy.parents, dtype=np.int64)
    coarse = Scored(softmax(logits, coarse_temperature or 1.0), parents[fine.labels], fine.patients)
    levels = score(coarse, hierarchy.coarse_labels)
    document |= {f"coarse_{name}": levels[name] for name in _COARSE_METRICS}
    answered = parents[fine.probabilities.argmax(axis=1)]
    return document | {
        "parent_accuracy": float(np.mean(answered == coarse.labels)),
        "levels_agree": float(np.mean(answered == coarse.probabilities.argmax(axis=1))),
    }


def summarise(
    model: str,
    folds: Sequence[Mapping[str, Any]],
    table: LabelTable,
    answers: Mapping[int, Mapping[str, Answers]],
    temperatures: Mapping[int, float],
) -> dict[str, Any]:
    """The document of ``metrics.json`` but for its seconds."""
    tests = [scored(answers[f["fold"]]["test"], table, temperatures[f["fold"]]) for f in folds]
    mean, std = across_folds([fold["test"] for fold in folds])
    return {
        "model": model,
        "labels": list(table.labels),
        "folds": list(folds),
        "mean": mean,
        "std": std,
        "ci95": bootstrap_intervals(tests),
    }


def write_predictions(
    path: Path,
    table: LabelTable,
    answers: Mapping[int, Mapping[str, Answers]],
    temperatures: Mapping[int, float],
    hierarchy: Hierarchy | None = None,
    coarse_temperatures: Mapping[int, float | None] | None = None,
) -> None:
    """Write ``predictions.csv``: calibrated probabilities of each fold's val and test slides.

    With a hierarchy, columns ``coarse_probability_<coarse label>`` follow.
    """
    header = ["slide", "fold", "split", "label", *(f"probability_{n}" for n in table.labels)]
    if hierarchy is not None:
        header += [f"coarse_probability_{n}" for n in hierarchy.coarse_labels]
    lines: list[list[Any]] = []
    for fold, parts in answers.items():
        for part, answer in parts.items():
            probabilities = softmax(answer.logits, temperatures[fold])
            if answer.levels.coarse is not None:
                temperature = (coarse_temperatures or {}).get(fold) or 1.0
                coarse = softmax(answer.levels.coarse, temperature)
                probabilities = np.concatenate([probabilities, coarse], axis=1)
            for slide, row in zip(answer.slides, probabilities.tolist(), strict=True):
                lines.append([slide, fold, part, table.by_slide[slide].label, *row])
    write_atomic(path, csv_bytes(header, lines))


def csv_bytes(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    """A CSV table in UTF-8 with Unix line ends."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue().encode()


__all__ = [
    "Answers",
    "answers_of",
    "answers_of_fold",
    "classes_of",
    "csv_bytes",
    "evaluate",
    "load_model",
    "open_store",
    "score_levels",
    "scored",
    "summarise",
    "write_predictions",
]
