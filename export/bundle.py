"""From a fold of a training run, or all of them as one model, to a model bundle."""

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
from cmamil_sdk.engines.gated import parity_table
from cmamil_sdk.engines.parity import EncoderParity, EncoderReference, refuse_encoder
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.models.blocks import SCORE_ROWS

from .aggregator import (
    AggregatorGraph,
    eager_outputs,
    explanations_of,
    export_aggregator,
    probe_inputs,
)
from .encoder import encoder_of
from .folds import FoldChoice, Trained, load_folds
from .graph import OPSET
from .parity import missed_gates
from .plans import PlanTarget, write_bundle_plans
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
    plan_targets: Sequence[PlanTarget] = (),
    on_plan_progress: OnProgress | None = None,
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
        plan_targets: TensorRT runtimes and GPUs for which plans are built into the bundle.
        on_plan_progress: as :func:`~cmamil_sdk.export.tensorrt.build_plan`.

    Raises:
        FieldInvalid: name or version is no plain file name, or the run has no such fold.
        RunInvalid: the run has no trained fold, a checkpoint is damaged, or folds differ.
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
    trained = load_folds(run, fold)
    target = out / name / version

    def fill(folder: Path) -> Callable[[dict[str, FileEntry]], Manifest]:
        parity = _write_graphs(folder, trained, encoder_weights, force=force)
        for plan_target in plan_targets:
            write_bundle_plans(folder, trained.meta.recipe.scales, plan_target, on_plan_progress)

        def manifest_of(files: dict[str, FileEntry]) -> Manifest:
            return _manifest(name, version, files, trained, parity)

        return manifest_of

    return write_bundle(target, fill)


@dataclass(frozen=True)
class _Parity:
    """How close both graphs are to their models; ``missed`` says in words which gates are not met."""

    encoder: tuple[EncoderParity, ...]
    aggregator: dict[str, float]
    missed: str


def _write_graphs(
    folder: Path, trained: Trained, encoder_weights: Path | None, *, force: bool
) -> _Parity:
    meta = trained.meta
    encoder = encoder_of(meta.encoder, encoder_weights)
    shutil.copyfile(encoder.graph, folder / ENCODER_GRAPH)
    rows = [row.parity for row in parity_table(encoder.graph, encoder.parity) if row.parity]
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
    _write_golden(folder / GOLDEN, trained, encoder.reference)
    missed = [
        f"the encoder's {reference_row.missed}" if reference_row.missed else "",
        f"the {missed_gates(aggregator)}" if missed_gates(aggregator) else "",
    ]
    return _Parity(tuple(rows), aggregator, ", ".join(filter(None, missed)))


def _write_golden(path: Path, trained: Trained, reference: EncoderReference) -> None:
    """Inputs and eager outputs that every load reproduces before the bundle is used."""
    module = AggregatorGraph(trained.models, trained.temperature, trained.coarse_temperature).eval()
    scales = trained.meta.recipe.scales
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
) -> Manifest:
    meta, model = trained.meta, trained.models[0]
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
        parity_failed=parity.missed,
        training=trained.training(),
    )


__all__ = ["export_bundle"]
