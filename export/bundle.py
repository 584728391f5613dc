"""From a fold of a training run to a model bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from cmamil_sdk.bundle.precisions import PrecisionReport
from cmamil_sdk.bundle.write import hashed_files, write_bundle
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines import Engine
from cmamil_sdk.engines.gated import parity_table
from cmamil_sdk.engines.parity import (
    EncoderParity,
    EncoderReference,
    measure_encoder,
    refuse_encoder,
)
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
    probe_bag,
)
from .check_slides import Slide
from .encoder import ExportedEncoder, encoder_of
from .graph import OPSET
from .parity import missed_gates
from .plans import PlanTarget, write_bundle_plans
from .precisions import (
    LowerGraphs,
    LowerPrecisions,
    judge_precisions,
    lower_precisions,
    write_aggregator_graphs,
    write_encoder_graphs,
)
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
    precisions: Sequence[str] = ("fp32",),
    check_slides: Sequence[Slide] = (),
    plan_targets: Sequence[PlanTarget] = (),
    on_progress: OnProgress | None = None,
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
        precisions: in which the bundle can run beside fp32, ``bf16``, ``fp16`` or ``int8``; each must
            pass its gates on this machine.
        check_slides: those that calibrate int8, and that precisions are judged on
            (:func:`~cmamil_sdk.export.check_slides.deal_slides`).
        plan_targets: TensorRT runtimes and GPUs for which plans are built into the bundle.
        on_progress: told what is done, steps done and steps in all; of plans as
            :func:`~cmamil_sdk.export.tensorrt.build_plan`.

    Raises:
        FieldInvalid: name or version is no plain file name, the run has no such fold, or precisions and
            slides do not belong together.
        RunInvalid: the run has no trained fold, or the checkpoint is damaged.
        ProvenanceUnknown: the model was trained on features that do not say how they were made.
        RecipeMismatch: the encoder's weights are not those the features were made with.
        ParityFailed: a graph does not reproduce its model, or a precision misses its gates.
        EngineMissing: this machine does not compute in a precision, so it cannot be judged.
        InputError: one of the slides cannot be used.
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
    lower = lower_precisions(precisions, check_slides, run=run, folds=[chosen], labels=meta.labels)
    target = out / name / version

    def fill(folder: Path) -> Callable[[dict[str, FileEntry]], Manifest]:
        encoder = encoder_of(meta.encoder, encoder_weights)
        parity, graphs = _write_graphs(folder, model, meta, encoder, lower, force=force)

        def manifest_of(
            files: dict[str, FileEntry], reports: Sequence[PrecisionReport]
        ) -> Manifest:
            return _manifest(name, version, files, model, meta, parity, reports)

        reports = judge_precisions(
            folder,
            manifest_of(hashed_files(folder), ()),
            lower,
            graphs,
            encoder.encoder,
            force=force,
            on_slide=on_progress,
        )
        for plan_target in plan_targets:
            write_bundle_plans(folder, meta.recipe.scales, plan_target, on_progress)
        return partial(manifest_of, reports=reports)

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
    folder: Path,
    model: MILModel,
    meta: _TracedMeta,
    encoder: ExportedEncoder,
    lower: LowerPrecisions,
    *,
    force: bool,
) -> tuple[_Parity, LowerGraphs]:
    shutil.copyfile(encoder.graph, folder / ENCODER_GRAPH)
    calibration_tiles = write_encoder_graphs(folder, lower, meta.recipe)

    def measure(engine: Engine) -> EncoderParity:
        # What is known of an encoder is not known of a graph that was calibrated now.
        if engine.info.precision == "int8":
            return measure_encoder(engine, encoder.reference)
        return encoder.parity(engine)

    table = parity_table(folder / ENCODER_GRAPH, measure)
    rows = [row.parity for row in table if row.parity]
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
    module = AggregatorGraph(model, meta.temperature, meta.coarse_temperature).eval()
    lower_aggregators = write_aggregator_graphs(folder, lower, module, meta.recipe.scales)
    _write_golden(folder / GOLDEN, module, meta, encoder.reference)
    missed = [
        f"the encoder's {reference_row.missed}" if reference_row.missed else "",
        f"the {missed_gates(aggregator)}" if missed_gates(aggregator) else "",
    ]
    parity = _Parity(tuple(rows), aggregator, ", ".join(filter(None, missed)))
    return parity, LowerGraphs(calibration_tiles, table, lower_aggregators)


def _write_golden(
    path: Path, module: AggregatorGraph, meta: _TracedMeta, reference: EncoderReference
) -> None:
    """Inputs and eager outputs that every load reproduces before the bundle is used."""
    dim = module.model.feature_dim
    bag = probe_bag(meta.recipe.scales, dim, finest_tiles=GOLDEN_FINEST_TILES, seed=7)
    inputs = {name: bag[name] for name in module.input_names}
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
    reports: Sequence[PrecisionReport],
) -> Manifest:
    missed = [parity.missed, *(f"{r.precision} misses {r.missed}" for r in reports if r.missed)]
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
        precisions=tuple(reports),
        parity_failed=", ".join(filter(None, missed)),
        training={
            "fold": meta.fold,
            "seed": meta.seed,
            "metrics": meta.metrics,
            "slides_seen": meta.slides_seen,
        },
    )


__all__ = ["best_fold", "export_bundle"]
