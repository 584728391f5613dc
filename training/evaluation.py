"""Score a run's folds, or a bundle, on feature files and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import LabelsInvalid, RecipeMismatch
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import restore_model
from cmamil_sdk.runs import CheckpointMeta, fold_directory, load_checkpoint, slide_mark
from cmamil_sdk.wording import counted

from .config import TrainConfig, make_config
from .fit import Logits, predict_levels
from .inputs import Features, open_input
from .labels import LabelTable, read_labels
from .layouts.base import Layout
from .layouts.folder import FeatureFolder
from .record import RunRecord
from .runtime import choose_device
from .scoring import Answers, FoldAnswers, score_levels, summarise
from .split_files import read_splits
from .splits import SplitRow, fold_numbers, slides_of
from .store import FeatureStore

_EVALUATED = ("val", "test")


@dataclass(frozen=True)
class Evaluation:
    """Answers of one or more models on labelled slides, and their scores.

    Attributes:
        model: what answered, in words.
        summary: a document like ``metrics.json``, without "seconds" of training.
        table: the labels.
        folds: by number; of a bundle there is one, 0, all of whose slides are test slides.
        hierarchy: of a model with coarse labels.
        facts: on the data, for people.
        caveat: whether the slides had a part in the training.
        flattered: whether they had, or may have had, so that the caveat is to be said aloud.
    """

    model: str
    summary: dict[str, Any]
    table: LabelTable
    folds: Mapping[int, FoldAnswers]
    hierarchy: Hierarchy | None
    facts: Mapping[str, str]
    caveat: str
    flattered: bool


def load_model(folder: Path) -> tuple[MILModel, CheckpointMeta]:
    """The trained model of one fold directory, in evaluation mode, and its description.

    Raises:
        RunInvalid: the checkpoint is missing, damaged, or of another model.
    """
    meta, tensors = load_checkpoint(folder)
    return restore_model(meta.model_kind, meta.hyperparameters, tensors, where=folder), meta


def evaluate_run(
    run: Path, *, features: Features, labels: Path | None = None, device: str = "auto"
) -> Evaluation:
    """Score a run's folds again on their test slides; the input is given as to training.

    Torch computes on ``device``, wherever the training ran.

    Raises:
        ConfigInvalid, EngineMissing: there is no such device, or not here.
        RunInvalid: the run is incomplete or damaged.
        LabelsInvalid, FeatureFileInvalid, RecipeMismatch: the input does not fit the run.
    """
    record = _on_device(RunRecord.read(run), device)
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
            f"{layout.place} was made by another recipe or encoder, or holds other scales, than the "
            f"features that {run} was trained on; extract features as for the training."
        )
    folds = {fold: answers_of_fold(run, fold, store, rows, record) for fold in fold_numbers(rows)}
    hierarchy = load_checkpoint(fold_directory(run, min(folds)))[0].hierarchy
    return _evaluation(
        f"Run {run.resolve().name}",
        record.config.model,
        table,
        folds,
        hierarchy,
        data_facts(store, layout.place),
        "No slide had a part in the training of the model that answered for it.",
    )


def _on_device(record: RunRecord, device: str) -> RunRecord:
    """The same record for another device."""
    config = make_config(**(record.config.model_dump() | {"device": device}))
    choose_device(device)
    return record.model_copy(update={"config": config})


def evaluate_bundle(
    path: Path, *, features: Path, labels: Path, device: str = "auto"
) -> Evaluation:
    """Score a bundle's exported graph, at its temperature, on the slides of a labels table.

    Raises:
        BundleCorrupt, BundleUnsupported, SelfTestFailed, EngineMissing: it cannot be loaded.
        LabelsInvalid: the bundle does not know a label, or a slide has no feature file.
        FeatureFileInvalid, ScaleMismatch: a feature file is damaged or lacks a scale.
        RecipeMismatch: the features were made by another recipe or encoder than the bundle's.
    """
    bundle = Bundle.load(path, device=device, callers=1)
    bundle.release_encoder()
    manifest = bundle.manifest
    table = read_labels(labels, known_labels=manifest.labels)
    layout = FeatureFolder(features, manifest.recipe.names)
    store = FeatureStore.open(layout, table, cache_mb=0, ignore_unlabelled=True)
    if (store.recipe, store.encoder) != (manifest.recipe, manifest.encoder):
        raise RecipeMismatch(
            f"{features} was made by another recipe or encoder than bundle {bundle.label} was "
            "trained on; extract the features with the bundle's."
        )
    slides = tuple(row.slide for row in table.rows)
    found = [bundle.aggregate(read_feature_file(layout.file(s))[0]) for s in slides]
    coarse = [x.coarse_probabilities for x in found if x.coarse_probabilities is not None]
    own = manifest.has_coarse_level
    levels = Logits(
        np.stack([answer.logits for answer in found]).astype(np.float64),
        # the graph gives these at their temperature, and no logits
        np.log(np.maximum(np.stack(coarse).astype(np.float64), 1e-30)) if own else None,
    )
    parts = {"test": Answers(slides, levels)}
    folds = {0: FoldAnswers(parts, manifest.temperature, 1.0 if own else None)}
    facts = data_facts(store, features) | {"engine": bundle.aggregator_info.label}
    caveat = _caveat(slides, manifest.training.get("slides_seen"))
    return _evaluation(
        f"Bundle {bundle.label}",
        manifest.model_kind,
        table,
        folds,
        manifest.hierarchy,
        facts,
        caveat or "None of them had a part in its training.",
        flattered=caveat is not None,
    )


def _caveat(slides: Sequence[str], seen: Sequence[str] | None) -> str | None:
    """What to warn of where a bundle is scored on slides it may know; None: nothing."""
    if seen is None:
        return "The bundle does not say which slides trained it: figures on those would flatter."
    known = {*seen} & {slide_mark(slide) for slide in slides}
    if not known:
        return None
    return (
        f"{len(known)} of {counted(len(slides), 'slide')} had, by their names, a part in the training of "
        "this bundle: the figures flatter."
    )


def _evaluation(
    name: str,
    model: str,
    table: LabelTable,
    folds: Mapping[int, FoldAnswers],
    hierarchy: Hierarchy | None,
    facts: Mapping[str, str],
    caveat: str,
    *,
    flattered: bool = False,
) -> Evaluation:
    documents = [
        {
            "fold": number,
            "test": score_levels(fold, "test", table, hierarchy),
            "temperature": fold.temperature,
        }
        for number, fold in folds.items()
    ]
    summary = summarise(model, documents, table, folds, hierarchy)
    return Evaluation(
        name,
        summary,
        table,
        folds,
        hierarchy,
        {"model": model} | dict(facts),
        caveat,
        flattered,
    )


def data_facts(store: FeatureStore, place: Path) -> dict[str, str]:
    """What is evaluated or trained on, for people; ``place`` is where the features lie."""
    table, recipe, encoder = store.table, store.recipe, store.encoder
    patients = f"of {counted(len({row.patient for row in table.rows}), 'patient')}"
    if not table.has_patients:
        patients = "whose patients are not known: each slide counts as one, in intervals too"
    counts = {label: sum(row.label == label for row in table.rows) for label in table.labels}
    return {
        "slides": f"{len(table.rows)} {patients}",
        "labels": ", ".join(f"{label} ({count})" for label, count in counts.items()),
        "label source": str(table.path),
        "features": f"{place}, {store.dim} wide",
        "encoder": "not known" if encoder is None else encoder.id,
        "scales": ", ".join(
            store.scales
            if recipe is None
            else (f"{scale.name} ({scale.mpp:g} µm/px)" for scale in recipe.scales)
        ),
    }


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
) -> FoldAnswers:
    """Answers of a trained fold, from its checkpoint, on its val and test slides."""
    model, meta = load_model(fold_directory(run, fold))
    parts = answers_of(model, store, rows, fold, record.config)
    return FoldAnswers(parts, meta.temperature, meta.coarse_temperature)


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


__all__ = [
    "Evaluation",
    "answers_of",
    "answers_of_fold",
    "data_facts",
    "evaluate_bundle",
    "evaluate_run",
    "load_model",
    "open_store",
]
