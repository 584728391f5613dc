"""Train a run directory from features and labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmamil_sdk.calibration import fit_temperature
from cmamil_sdk.files import csv_text, write_atomic, write_json
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import build_model
from cmamil_sdk.runs import (
    UNFINISHED_FIT,
    CheckpointMeta,
    fold_directory,
    read_json,
    save_checkpoint,
    slide_mark,
)

from .bootstrap import Int64
from .config import TrainConfig
from .evaluation import answers_of, answers_of_fold, data_facts, open_store
from .fit import FitResult, ProgressCallback, fit
from .hyperparameters import hyperparameters_of
from .inputs import Features, open_input, plan_folds
from .labels import LabelTable
from .metrics import finite_or_none
from .outputs import CURVES, write_run_report
from .plots import curves_png
from .recipes import recipe_of
from .record import RunRecord, check_run, open_run
from .resume import what_is_done
from .run_lock import sole_writer
from .runtime import choose_device, lightning_precision, reproducible
from .scoring import (
    Answers,
    FoldAnswers,
    classes_of,
    score_levels,
    summarise,
    write_predictions,
)
from .splits import SplitRow, fold_numbers, slides_of
from .store import FeatureStore, resolve_cross_attention


def train(
    config: TrainConfig,
    *,
    features: Features,
    labels: Path | None = None,
    run: Path,
    splits: Path | None = None,
    on_progress: ProgressCallback | None = None,
    on_resume: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train every fold and write the run directory (layout: :mod:`cmamil_sdk.runs`).

    Folds come from the tree or from ``splits`` if given, else from a split column of the labels
    (one fold), else they are made. A run that was killed goes on after its last finished epoch when
    it is started again with the same arguments, to equal bits; a finished one returns its metrics.

    Args:
        config: how to train.
        features: folder of feature files, or the root of CMA-MIL's tree of each scale, coarse to
            fine (:mod:`cmamil_sdk.training.layouts`).
        labels: CSV, see :func:`~cmamil_sdk.training.labels.read_labels`; for trees None, or one that
            tells the patients.
        run: the run directory.
        splits: a file or directory, see :func:`~cmamil_sdk.training.split_files.read_splits`.
        on_progress: called after each epoch of each fold.
        on_resume: called before the first epoch, with a sentence on what an earlier start has left.

    Returns:
        The document of ``metrics.json``.

    Raises:
        LabelsInvalid, FeatureFileInvalid, RecipeMismatch, ScaleMismatch, ConfigInvalid: the input
            cannot be trained on; found before training starts.
        OutputExists: ``run`` holds something else, or a run of another configuration, or another
            process writes into it.
        EngineMissing: the device is not there.
        NonFiniteOutput: training diverged.
    """
    lightning_precision(config.precision, choose_device(config.device))
    check_run(run, config)
    layout, table = open_input(features, labels, config.scales)
    resolve_hierarchy(config, table)  # refused before any feature is read
    rows = plan_folds(config, layout, table, splits)
    store = open_store(config, layout, table)
    record = RunRecord(
        config=config,
        model=resolve_model(config, store, table),
        labels=table.labels,
        recipe_key=store.origin.recipe_key,
        features_sha256=store.digest(),
        losses=asdict(recipe_of(config)) if config.model == "hmil" else None,
    )
    with sole_writer(run):
        complete = open_run(run, record, rows)
        left = what_is_done(run, fold_numbers(rows))
        if left is not None and on_resume is not None:
            on_resume(left)
        if complete:
            return read_json(run / "metrics.json")
        return _train_folds(run, store, rows, record, data_facts(store, layout.place), on_progress)


def _train_folds(
    run: Path,
    store: FeatureStore,
    rows: Sequence[SplitRow],
    record: RunRecord,
    facts: Mapping[str, str],
    on_progress: ProgressCallback | None,
) -> dict[str, Any]:
    """Train the folds that are not finished, and write what the run leaves; its summary."""
    config, table = record.config, store.table
    documents, folds = [], {}
    for fold in fold_numbers(rows):
        finished = fold_directory(run, fold) / "metrics.json"
        if finished.exists():
            documents.append(read_json(finished))
            folds[fold] = answers_of_fold(run, fold, store, rows, record)
        else:
            document, folds[fold] = _train_fold(run, fold, store, rows, record, on_progress)
            documents.append(document)
    hierarchy = resolve_hierarchy(config, table)
    write_predictions(run / "predictions.csv", table, folds, hierarchy)
    summary = summarise(config.model, documents, table, folds, hierarchy)
    summary["seconds"] = sum(document["seconds"] for document in documents)
    write_run_report(
        run,
        config,
        table,
        folds,
        summary,
        hierarchy=hierarchy,
        facts=facts,
        exportable=store.encoder is not None,
    )
    write_json(run / "metrics.json", summary)
    return summary


def resolve_model(config: TrainConfig, store: FeatureStore, table: LabelTable) -> dict[str, Any]:
    """Hyper-parameters of the model that ``config`` means for these features and labels.

    Raises:
        ConfigInvalid: no model can be built from them.
        DependencyMissing: the model's library is not installed.
    """
    hyperparameters = _hyperparameters(config, store, table)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        build_model(config.model, hyperparameters)
    return hyperparameters


def _hyperparameters(config: TrainConfig, store: FeatureStore, table: LabelTable) -> dict[str, Any]:
    hierarchy = resolve_hierarchy(config, table)
    return hyperparameters_of(
        config,
        scales=store.scales,
        feature_dim=store.dim,
        n_classes=len(table.labels),
        cross_attention=resolve_cross_attention(config.cross_attention, store),
        parents=None if hierarchy is None else hierarchy.parents,
    )


def resolve_hierarchy(config: TrainConfig, table: LabelTable) -> Hierarchy | None:
    """The hierarchy over the table's labels, if the configuration has one.

    Raises:
        ConfigInvalid: it does not fit the labels.
    """
    if config.hierarchy is None:
        return None
    return Hierarchy.of(table.labels, config.hierarchy)


def _train_fold(
    run: Path,
    fold: int,
    store: FeatureStore,
    rows: Sequence[SplitRow],
    record: RunRecord,
    on_progress: ProgressCallback | None,
) -> tuple[dict[str, Any], FoldAnswers]:
    started = time.perf_counter()
    config, seed = record.config, record.config.seed + fold
    folder = fold_directory(run, fold)
    train_slides = slides_of(rows, fold, "train")
    with reproducible(seed, config.threads):
        model = build_model(config.model, record.model)
    result = fit(
        model,
        store.bags(train_slides),
        store.bags(slides_of(rows, fold, "val")),
        config,
        seed=seed,
        fold=fold,
        moments=store.moments(train_slides),
        on_progress=on_progress,
        state_path=folder / UNFINISHED_FIT,
        log_directory=folder / "tensorboard" if config.log_data else None,
    )
    parts = answers_of(model, store, rows, fold, config)
    hierarchy = resolve_hierarchy(config, store.table)
    val_labels = classes_of(store.table, parts["val"].slides)
    temperature = fit_temperature(parts["val"].logits, val_labels)
    coarse_temperature = _coarse_temperature(config, parts["val"], val_labels, hierarchy)
    answers = FoldAnswers(parts, temperature, coarse_temperature)
    document = {
        "fold": fold,
        "test": score_levels(answers, "test", store.table, hierarchy),
        "val": score_levels(answers, "val", store.table, hierarchy) if len(val_labels) else None,
        "temperature": temperature,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "slides_per_step": config.slides_per_step(len(train_slides)),
        "seconds": result.seconds_before + time.perf_counter() - started,
    }
    if coarse_temperature is not None:
        document["coarse_temperature"] = coarse_temperature
    seen = [*train_slides, *parts["val"].slides]
    _write_fold(folder, model, store, record, document, result, seed, seen)
    return document, answers


def _coarse_temperature(
    config: TrainConfig, val: Answers, labels: Int64, hierarchy: Hierarchy | None
) -> float | None:
    """None: there is no coarse answer, or nothing has taught the model to give one of its own."""
    if hierarchy is None or val.levels.coarse is None or recipe_of(config).weights.coarse == 0:
        return None
    return fit_temperature(val.levels.coarse, np.array(hierarchy.parents, dtype=np.int64)[labels])


def _write_fold(
    folder: Path,
    model: MILModel,
    store: FeatureStore,
    record: RunRecord,
    document: Mapping[str, Any],
    result: FitResult,
    seed: int,
    seen: Sequence[str],
) -> None:
    """Write a fold's files; the last, ``metrics.json``, says that the fold is finished."""
    meta = CheckpointMeta(
        model_kind=model.kind,
        hyperparameters=model.hyperparameters,
        labels=record.labels,
        hierarchy=resolve_hierarchy(record.config, store.table),
        recipe=store.recipe,
        encoder=store.encoder,
        fold=document["fold"],
        seed=seed,
        temperature=document["temperature"],
        coarse_temperature=document.get("coarse_temperature"),
        metrics=_checkpoint_metrics(document, result),
        slides_seen=tuple(sorted(map(slide_mark, seen))),
    )
    save_checkpoint(folder, meta, {k: v.numpy() for k, v in model.state_dict().items()})
    header = list(result.history[0])
    lines = ([row[name] for name in header] for row in result.history)
    write_atomic(folder / "history.csv", csv_text(header, lines).encode())
    write_atomic(folder / CURVES, curves_png(result.history, result.best_epoch))
    write_json(folder / "metrics.json", document)
    (folder / UNFINISHED_FIT).unlink(missing_ok=True)


def _checkpoint_metrics(document: Mapping[str, Any], result: FitResult) -> dict[str, float]:
    """Finite scalars of the kept epoch (``val_*``) and of the test (``test_*``)."""
    kept = result.history[result.best_epoch - 1]
    metrics: dict[str, Any] = {name: v for name, v in kept.items() if name.startswith("val_")}
    metrics |= {f"test_{k}": v for k, v in document["test"].items() if isinstance(v, float)}
    return {name: v for name, v in metrics.items() if finite_or_none(v) is not None}


__all__ = ["resolve_hierarchy", "resolve_model", "train"]
