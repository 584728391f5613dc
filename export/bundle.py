"""From a fold of a training run to a model bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.bundle.manifest import (
    AGGREGATOR_GRAPH,
    ENCODER_GRAPH,
    GOLDEN,
    NAME_PATTERN,
    FileEntry,
    Manifest,
)
from cmamil_sdk.bundle.write import write_bundle
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.gated import parity_table
from cmamil_sdk.engines.parity import EncoderParity, EncoderReference, refuse_encoder
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

from .aggregator import (
    AggregatorGraph,
    eager_outputs,
    explanations_of,
    export_aggregator,
)
from .encoder import encoder_of
from .graph_form import OPSET
from .parity import missed_gates
from .plans import PlanTarget, write_bundle_plans
from .probe_bags import probe_bag
from .tensorrt import OnProgress

GOLDEN_FINEST_TILES = 50


class _TracedMeta(CheckpointMeta):
    """A checkpoint trained on features that say how they were made, so that it can serve."""

    recipe: TilingRecipe
    encoder: EncoderInfo


def export_bundle(
    run: Path,
    out: Path,
    *,
    name: str,
    version: str = "1",
    fold: int | None = None,
    encoder_weights: Path | None = None,
    force: bool = False,
    plan_targets: Sequence[PlanTarget] = (),
    on_plan_progress: OnProgress | None = None,
) -> Path:
    """Export one fold's model with its encoder as the bundle ``out/name/version``.

    Args:
        run: a run directory.
        out: where bundles are kept.
        name: of the bundle.
        version: of the bundle.
        fold: which fold; None takes the one with the best validation AUC.
        encoder_weights: needed if the features were made with weights from a file.
        force: write a bundle that misses its gate all the same, and mark it as failed.
        plan_targets: TensorRT runtimes and GPUs for which plans are built into the bundle.
        on_plan_progress: as :func:`~cmamil_sdk.export.tensorrt.build_plan`.

    Raises:
        FieldInvalid: name or version is no plain file name, or the run has no such fold.
        RunInvalid: the run has no trained fold, or the checkpoint is damaged.
        ProvenanceUnknown: the model was trained on features that do not say how they were made.
        RecipeMismatch: the encoder's weights are not those the features were made with.
        ParityFailed: a graph does not reproduce its model.
        BundleUnsupported: TensorRT builds no plan of a graph.
        OutputExists: the bundle is there already.
    """
    for option, value in (("--name", name), ("--version", version)):
        if not re.fullmatch(NAME_PATTERN, value):
            raise FieldInvalid(
                f"{option} {value!r} is no name for a bundle; use up to 64 letters, digits, dots, "
                "underscores and hyphens, with a letter or digit first."
            )
    if fold is not None:
        _refuse_missing_fold(run, fold)
    chosen = best_fold(run) if fold is None else fold
    where = fold_directory(run, chosen)
    found, tensors = load_checkpoint(where)
    meta = _traced(found, where)
    model = restore_model(meta.model_kind, meta.hyperparameters, tensors, where=where)
    target = out / name / version

    def fill(folder: Path) -> Callable[[dict[str, FileEntry]], Manifest]:
        parity = _write_graphs(folder, model, meta, encoder_weights, force=force)
        for plan_target in plan_targets:
            write_bundle_plans(folder, meta.recipe.scales, plan_target, on_plan_progress)

        def manifest_of(files: dict[str, FileEntry]) -> Manifest:
            return _manifest(name, version, files, model, meta, parity)

        return manifest_of

    return write_bundle(target, fill)


def best_fold(run: Path) -> int:
    """The fold with the best validation AUC (the first of equals).

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
    scores = []
    for entry in folds:
        fold = entry.get("fold") if isinstance(entry, dict) else None
        if not isinstance(fold, int):
            raise RunInvalid(f"{run}/metrics.json has a fold without its number; train again.")
        meta, _ = load_checkpoint(fold_directory(run, fold))
        scores.append((-meta.metrics.get("val_auc", 0.0), fold))
    return min(scores)[1]


def _refuse_missing_fold(run: Path, fold: int) -> None:
    trained = trained_folds(run)
    if not trained:
        raise RunInvalid(f"{run} holds no trained fold; name a run directory of `cmamil train`.")
    if fold not in trained:
        raise FieldInvalid(
            f"{run} has no trained fold {fold}; it has {', '.join(map(str, trained))}."
        )


def _traced(meta: CheckpointMeta, where: Path) -> _TracedMeta:
    if meta.recipe is None or meta.encoder is None:
        raise ProvenanceUnknown(
            f"The model in {where} was trained on features that do not say how their tiles were "
            "read and encoded, so no bundle could do the same to a slide; extract features with "
            "`cmamil features`, and train on those."
        )
    return _TracedMeta(**dict(meta))


@dataclass(frozen=True)
class _Parity:
    """How close both graphs are to their models; ``missed`` says in words which gates are not met."""

    encoder: tuple[EncoderParity, ...]
    aggregator: dict[str, float]
    missed: str


def _write_graphs(
    folder: Path, model: MILModel, meta: _TracedMeta, encoder_weights: Path | None, *, force: bool
) -> _Parity:
    encoder = encoder_of(meta.encoder, encoder_weights)
    shutil.copyfile(encoder.graph, folder / ENCODER_GRAPH)
    rows = [row.parity for row in parity_table(encoder.graph, encoder.parity) if row.parity]
    reference_row = next(row for row in rows if row.label == "onnxruntime-cpu-fp32")
    if not force:
        refuse_encoder(reference_row, f"The exported graph of encoder {meta.encoder.id}")
    aggregator = export_aggregator(
        model,
        meta.recipe.scales,
        meta.temperature,
        folder / AGGREGATOR_GRAPH,
        coarse_temperature=meta.coarse_temperature,
        force=force,
    )
    _write_golden(folder / GOLDEN, model, meta, encoder.reference)
    missed = [
        f"the encoder's {reference_row.missed}" if reference_row.missed else "",
        f"the {missed_gates(aggregator)}" if missed_gates(aggregator) else "",
    ]
    return _Parity(tuple(rows), aggregator, ", ".join(filter(None, missed)))


def _write_golden(
    path: Path, model: MILModel, meta: _TracedMeta, reference: EncoderReference
) -> None:
    """Inputs and eager outputs that every load reproduces before the bundle is used."""
    bag = probe_bag(meta.recipe.scales, model.feature_dim, finest_tiles=GOLDEN_FINEST_TILES, seed=7)
    names = [*(f"features_{s}" for s in model.scales), *model.index_names]
    inputs = {name: bag[name] for name in names}
    module = AggregatorGraph(model, meta.temperature, meta.coarse_temperature).eval()
    outputs = eager_outputs(module, inputs)
    arrays: dict[str, Any] = {
        "encoder/in/tiles": reference.tiles,
        "encoder/out/features": reference.features,
    }
    arrays |= {f"aggregator/in/{name}": array for name, array in inputs.items()}
    arrays |= {f"aggregator/out/{name}": array for name, array in outputs.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _manifest(
    name: str,
    version: str,
    files: dict[str, FileEntry],
    model: MILModel,
    meta: _TracedMeta,
    parity: _Parity,
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        files=files,
        model_kind=meta.model_kind,
        hyperparameters=meta.hyperparameters,
        labels=meta.labels,
        hierarchy=meta.hierarchy,
        recipe=meta.recipe,
        encoder=meta.encoder,
        temperature=meta.temperature,
        coarse_temperature=meta.coarse_temperature,
        opset=OPSET,
        precision="fp32",
        index_inputs=model.index_names,
        explanations=explanations_of(model),
        parity=parity.aggregator,
        encoder_parity=parity.encoder,
        parity_failed=parity.missed,
        training={
            "fold": meta.fold,
            "seed": meta.seed,
            "metrics": meta.metrics,
            "slides_seen": meta.slides_seen,
        },
    )


__all__ = ["best_fold", "export_bundle"]
