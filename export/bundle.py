"""From a fold of a training run, or all of them as one model, to a model bundle."""

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
from cmamil_sdk.engines import Engine
from cmamil_sdk.engines.gated import parity_table
from cmamil_sdk.engines.parity import (
    EncoderParity,
    EncoderReference,
    measure_encoder,
    missed_gates,
    refuse_encoder,
)
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.models.blocks import SCORE_ROWS
from cmamil_sdk.tiling.recipe import Scale

from .aggregator import (
    AggregatorGraph,
    eager_outputs,
    explanations_of,
    export_aggregator,
    probe_inputs,
)
from .check_slides import Slide
from .encoder import ExportedEncoder, encoder_of, loaded_encoder_of
from .folds import FoldChoice, Trained, load_folds
from .graph_form import OPSET
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


def export_bundle(
    run: Path,
    out: Path,
    *,
    name: str,
    version: str = "1",
    fold: FoldChoice = "best",
    encoder_weights: Path | None = None,
    force: bool = False,
    precisions: Sequence[str] = ("fp32",),
    check_slides: Sequence[Slide] = (),
    plan_targets: Sequence[PlanTarget] = (),
    on_progress: OnProgress | None = None,
) -> Path:
    """Export trained folds with their encoder as the bundle ``out/name/version``.

    Args:
        run: a run directory.
        out: where bundles are kept.
        name: of the bundle.
        version: of the bundle.
        fold: its number; ``best`` takes the one with the best validation AUC, ``all`` makes one model
            of all folds, whose answers are averaged (:func:`~.folds.ensemble_temperatures`).
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
        RunInvalid: the run has no trained fold, a checkpoint is damaged, or folds differ.
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
    trained = load_folds(run, fold)
    folds = [meta.fold for meta in trained.metas]
    labels = trained.meta.labels
    lower = lower_precisions(precisions, check_slides, run=run, folds=folds, labels=labels)
    target = out / name / version

    def fill(folder: Path) -> Callable[[dict[str, FileEntry]], Manifest]:
        encoder = encoder_of(trained.meta.encoder, encoder_weights)
        parity, graphs = _write_graphs(folder, trained, encoder, lower, force=force)

        def manifest_of(
            files: dict[str, FileEntry], reports: Sequence[PrecisionReport]
        ) -> Manifest:
            return _manifest(name, version, files, trained, parity, reports)

        reports = judge_precisions(
            folder,
            manifest_of(hashed_files(folder), ()),
            lower,
            graphs,
            partial(loaded_encoder_of, trained.meta.encoder, encoder_weights),
            force=force,
            on_slide=on_progress,
        )
        for plan_target in plan_targets:
            write_bundle_plans(folder, trained.meta.recipe.scales, plan_target, on_progress)
        return partial(manifest_of, reports=reports)

    return write_bundle(target, fill)


@dataclass(frozen=True)
class _Parity:
    """How close both graphs are to their models; ``missed`` says in words which gates are not met."""

    encoder: tuple[EncoderParity, ...]
    aggregator: dict[str, float]
    missed: str


def _write_graphs(
    folder: Path,
    trained: Trained,
    encoder: ExportedEncoder,
    lower: LowerPrecisions,
    *,
    force: bool,
) -> tuple[_Parity, LowerGraphs]:
    meta = trained.meta
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
        trained.models,
        meta.recipe.scales,
        trained.temperature,
        folder / AGGREGATOR_GRAPH,
        coarse_temperature=trained.coarse_temperature,
        force=force,
    )
    module = AggregatorGraph(trained.models, trained.temperature, trained.coarse_temperature).eval()
    lower_aggregators = write_aggregator_graphs(folder, lower, module, meta.recipe.scales)
    _write_golden(folder / GOLDEN, module, meta.recipe.scales, encoder.reference)
    missed = [
        f"the encoder's {reference_row.missed}" if reference_row.missed else "",
        f"the {missed_gates(aggregator)}" if missed_gates(aggregator) else "",
    ]
    parity = _Parity(tuple(rows), aggregator, ", ".join(filter(None, missed)))
    return parity, LowerGraphs(calibration_tiles, table, lower_aggregators)


def _write_golden(
    path: Path, module: AggregatorGraph, scales: Sequence[Scale], reference: EncoderReference
) -> None:
    """Inputs and eager outputs that every load reproduces before the bundle is used."""
    inputs = probe_inputs(module, scales, finest_tiles=GOLDEN_FINEST_TILES, seed=7)
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
    trained: Trained,
    parity: _Parity,
    reports: Sequence[PrecisionReport],
) -> Manifest:
    meta, model = trained.meta, trained.models[0]
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
        temperature=trained.temperature,
        coarse_temperature=trained.coarse_temperature,
        opset=OPSET,
        precision="fp32",
        index_inputs=model.index_names,
        attention_rows=SCORE_ROWS,
        explanations=explanations_of(model),
        parity=parity.aggregator,
        encoder_parity=parity.encoder,
        precisions=tuple(reports),
        parity_failed=", ".join(filter(None, missed)),
        training=trained.training(),
    )


__all__ = ["export_bundle"]
