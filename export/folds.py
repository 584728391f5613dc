"""Which trained folds of a run become one graph, and how their common answer is calibrated."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmamil_sdk.calibration import Float64, Int64, fit_temperature
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import FieldInvalid, ProvenanceUnknown, RunInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import restore_model
from cmamil_sdk.runs import (
    CheckpointMeta,
    fold_directory,
    load_checkpoint,
    read_json,
    trained_folds,
)
from cmamil_sdk.tiling.recipe import TilingRecipe

FoldChoice = int | Literal["best", "all"]
"""A fold's number, the one of best validation AUC, or all of a finished run as one model."""

_COMMON = ("model_kind", "labels", "hierarchy", "recipe", "encoder", "hyperparameters")
"""What folds must have in common to answer together."""


class TracedMeta(CheckpointMeta):
    """A checkpoint trained on features that say how they were made, so that it can serve."""

    recipe: TilingRecipe
    encoder: EncoderInfo


@dataclass(frozen=True)
class Trained:
    """One fold's model, or those of several that answer together.

    Attributes:
        models: at least one, in the order of their folds.
        metas: what their checkpoints say; all but fold, seed, temperatures and figures are common.
        temperature: of their mean logits.
        coarse_temperature: of the mean coarse logits; None: there are none.
    """

    models: tuple[MILModel, ...]
    metas: tuple[TracedMeta, ...]
    temperature: float
    coarse_temperature: float | None

    @property
    def meta(self) -> TracedMeta:
        """What is common to all."""
        return self.metas[0]

    def training(self) -> dict[str, Any]:
        """Where it comes from, for the manifest: of several folds each one's figures and their mean."""
        if len(self.metas) == 1:
            return {
                "fold": self.meta.fold,
                "seed": self.meta.seed,
                "metrics": self.meta.metrics,
                "slides_seen": self.meta.slides_seen,
            }
        known = set.intersection(*(set(meta.metrics) for meta in self.metas))
        described = {"fold", "seed", "temperature", "coarse_temperature", "metrics"}
        return {
            "folds": [meta.model_dump(include=described) for meta in self.metas],
            "metrics": {
                name: float(np.mean([meta.metrics[name] for meta in self.metas]))
                for name in sorted(known)
            },
            "slides_seen": self._slides_seen(),
        }

    def _slides_seen(self) -> list[str] | None:
        """Of all folds; None if one does not say it."""
        marks: set[str] = set()
        for meta in self.metas:
            if meta.slides_seen is None:
                return None
            marks |= set(meta.slides_seen)
        return sorted(marks)


def load_folds(run: Path, choice: FoldChoice) -> Trained:
    """The models of the folds chosen, in evaluation mode.

    Raises:
        FieldInvalid: the run has no such fold.
        RunInvalid: the run has no trained fold, is not finished, or a file of it is damaged; the folds
            were not trained alike.
        ProvenanceUnknown: a model was trained on features that do not say how they were made.
    """
    if choice == "all":
        numbers = finished_folds(run)
    elif choice == "best":
        numbers = [best_fold(run)]
    else:
        _refuse_missing_fold(run, choice)
        numbers = [choice]
    models, metas = zip(*(_load_fold(fold_directory(run, fold)) for fold in numbers), strict=True)
    _refuse_different(run, metas)
    if len(metas) == 1:
        temperatures = metas[0].temperature, metas[0].coarse_temperature
    else:
        temperatures = ensemble_temperatures(run, metas)
    return Trained(models, metas, *temperatures)


def best_fold(run: Path) -> int:
    """The fold with the best validation AUC (the first of equals).

    Raises:
        RunInvalid: no run, or one that is not finished or damaged.
    """
    scores = []
    for fold in finished_folds(run):
        meta, _ = load_checkpoint(fold_directory(run, fold))
        scores.append((-meta.metrics.get("val_auc", 0.0), fold))
    return min(scores)[1]


def finished_folds(run: Path) -> list[int]:
    """Numbers of the folds of a finished run, as its summary lists them.

    Raises:
        RunInvalid: no run, or one that is not finished or damaged.
    """
    trained = trained_folds(run)
    if trained and not (run / "metrics.json").exists():
        raise RunInvalid(
            f"{run} is not finished: start its training again to go on, or name one of its trained "
            f"folds ({', '.join(map(str, trained))})."
        )
    folds = read_json(run / "metrics.json").get("folds")
    if not isinstance(folds, list) or not folds:
        raise RunInvalid(f"{run}/metrics.json lists no folds; finish the training first.")
    numbers = []
    for entry in folds:
        fold = entry.get("fold") if isinstance(entry, dict) else None
        if not isinstance(fold, int):
            raise RunInvalid(f"{run}/metrics.json has a fold without its number; train again.")
        numbers.append(fold)
    return numbers


def ensemble_temperatures(run: Path, metas: Sequence[CheckpointMeta]) -> tuple[float, float | None]:
    """Temperatures of the mean logits of folds, from what they answered when they were trained.

    Every slide that validated a fold is answered by the mean of those folds that did not train on it:
    that one, and whichever else it validated or tested. So no answer comes from a model that had
    learned it, and no slide is used that the bundle does not list as seen. A mean of fewer models is
    noisier than that of all, so the temperatures err towards modest probabilities.

    Raises:
        RunInvalid: ``predictions.csv`` is missing, damaged, or not of these folds.
    """
    first = metas[0]
    truth, levels = _held_out_answers(run / "predictions.csv", metas)
    temperature = fit_temperature(levels[0], truth)
    if first.hierarchy is None or first.coarse_temperature is None:
        return temperature, None
    parents = np.array(first.hierarchy.parents, dtype=np.int64)
    return temperature, fit_temperature(levels[1], parents[truth])


@dataclass(frozen=True)
class _Answer:
    """What a fold answered for a slide that it did not train on.

    ``levels`` are logits, each less an amount common to all classes: of the labels ``[C]``, and of the
    coarse labels ``[Cc]`` where the model answers those itself.
    """

    is_validation: bool
    label: int
    levels: tuple[Float64, ...]


def _held_out_answers(
    path: Path, metas: Sequence[CheckpointMeta]
) -> tuple[Int64, tuple[Float64, ...]]:
    """Classes ``[n]`` of the validation slides, and per level their mean logits ``[n, ...]``."""
    answers: dict[str, list[_Answer]] = {}
    by_fold = {str(meta.fold): meta for meta in metas}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["fold"] in by_fold:
                    answer = _answer(row, by_fold[row["fold"]])
                    answers.setdefault(row["slide"], []).append(answer)
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as problem:
        raise RunInvalid(
            f"{path} does not hold the folds' answers, by which they are calibrated together "
            f"({problem}); train again, or export one fold."
        ) from problem
    used = [held for held in answers.values() if any(answer.is_validation for answer in held)]
    truth = np.array([held[0].label for held in used], dtype=np.int64)
    n_levels = 1 if metas[0].coarse_temperature is None else 2
    return truth, tuple(
        np.array([np.mean([answer.levels[level] for answer in held], axis=0) for held in used])
        for level in range(n_levels)
    )


def _answer(row: Mapping[str, str], meta: CheckpointMeta) -> _Answer:
    """A line of ``predictions.csv``, whose probabilities are those of the fold's temperature."""
    levels = [_logits(row, "probability_", meta.labels, meta.temperature)]
    if meta.hierarchy is not None and meta.coarse_temperature is not None:
        names = meta.hierarchy.coarse_labels
        levels.append(_logits(row, "coarse_probability_", names, meta.coarse_temperature))
    return _Answer(row["split"] == "val", meta.labels.index(row["label"]), tuple(levels))


def _logits(
    row: Mapping[str, str], prefix: str, names: Sequence[str], temperature: float
) -> Float64:
    probabilities = np.array([float(row[prefix + name]) for name in names])
    # where the exponential has underflowed, the smallest number that it gives
    logits: Float64 = temperature * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    return logits


def _load_fold(where: Path) -> tuple[MILModel, TracedMeta]:
    found, tensors = load_checkpoint(where)
    if found.recipe is None or found.encoder is None:
        raise ProvenanceUnknown(
            f"The model in {where} was trained on features that do not say how their tiles were "
            "read and encoded, so no bundle could do the same to a slide; extract features with "
            "`cmamil features`, and train on those."
        )
    meta = TracedMeta(**dict(found))
    return restore_model(meta.model_kind, meta.hyperparameters, tensors, where=where), meta


def _refuse_missing_fold(run: Path, fold: int) -> None:
    trained = trained_folds(run)
    if not trained:
        raise RunInvalid(f"{run} holds no trained fold; name a run directory of `cmamil train`.")
    if fold not in trained:
        raise FieldInvalid(
            f"{run} has no trained fold {fold}; it has {', '.join(map(str, trained))}."
        )


def _refuse_different(run: Path, metas: Sequence[TracedMeta]) -> None:
    first = metas[0]
    for meta in metas[1:]:
        differing = [name for name in _COMMON if getattr(meta, name) != getattr(first, name)]
        if (meta.coarse_temperature is None) != (first.coarse_temperature is None):
            differing.append("coarse_temperature")
        if differing:
            raise RunInvalid(
                f"{run}: folds {first.fold} and {meta.fold} differ in {', '.join(differing)}, so their "
                "answers cannot be averaged; export one of them, or train all in one run."
            )


__all__ = [
    "FoldChoice",
    "TracedMeta",
    "Trained",
    "best_fold",
    "ensemble_temperatures",
    "finished_folds",
    "load_folds",
]
