"""``cmamil export``: trained folds and their encoder become a model bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmamil_sdk.cli.lists import names_in
from cmamil_sdk.cli.output import Progress, output_folder, say
from cmamil_sdk.cli.parity_tables import parity_text, precisions_text
from cmamil_sdk.cli.plans import ComputeCapability, plan_table, plan_targets_of

if TYPE_CHECKING:
    from cmamil_sdk.export.folds import FoldChoice


def run(
    run_directory: Annotated[Path, typer.Option("--run", help="The run directory.")],
    name: Annotated[str, typer.Option(help="Name of the bundle.")],
    out: Annotated[Path, typer.Option(help="Folder that holds bundles.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    fold: Annotated[
        str,
        typer.Option(
            help="Which fold: its number, best by validation AUC, or all as one model that averages."
        ),
    ] = "best",
    weights: Annotated[
        Path | None, typer.Option(help="Encoder weights, if features were made with a file.")
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            help="What is written: the bundle with onnx, always, in it plans for tensorrt or "
            "tensorrt-rtx, and triton, a model repository beside it."
        ),
    ] = "onnx",
    compute_capability: ComputeCapability = "",
    precision: Annotated[
        str,
        typer.Option(
            help="In which the bundle can run beside fp32: bf16, fp16, int8, or several, by commas; each "
            "must pass its gates, docs/engines.md."
        ),
    ] = "fp32",
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            help="Slides, folders or a CSV: int8 is calibrated on some of them, and every precision "
            "judged on others, which are the fold's test slides where they are among them."
        ),
    ] = None,
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder for the models of the target triton.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write a bundle that misses its gate, and mark it as failed."),
    ] = False,
) -> None:
    """Export encoder and aggregator to ONNX, compare both with the model, hash everything."""
    from cmamil_sdk.bundle.verify import read_manifest
    from cmamil_sdk.cli.slide_list import expand_slides
    from cmamil_sdk.engines.plans import listed_plans
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.export.bundle import export_bundle
    from cmamil_sdk.export.triton import export_triton, new_versions

    choice = _fold_choice(fold)
    asked = names_in(targets, "--targets")
    plan_targets = plan_targets_of(
        asked, compute_capability, option="--targets", others=("onnx", "triton")
    )
    if ("triton" in asked) != (model_repository is not None):
        raise FieldInvalid(
            "The target triton and --model-repository belong together; give both or neither."
        )
    if model_repository is not None:
        new_versions(model_repository, name, version)
        output_folder(model_repository)
    with Progress("export") as progress:
        path = export_bundle(
            run_directory,
            out,
            name=name,
            version=version,
            fold=choice,
            encoder_weights=weights,
            force=force,
            precisions=names_in(precision, "--precision"),
            check_slides=expand_slides(calibration or []),
            plan_targets=plan_targets,
            on_progress=lambda phase, done, steps: progress.update(done, steps, phase),
        )
    manifest, digest = read_manifest(path)
    say(parity_text(manifest.encoder_parity, manifest.parity))
    if manifest.precisions:
        say(f"\n{precisions_text(manifest.precisions)}")
    if plan_targets:
        say(f"\n{plan_table(listed_plans(path))}")
    if manifest.parity_failed:
        say(f"FAILED: {manifest.parity_failed}; predict and serve refuse this bundle unless told")
    say(f"{path} ({_folds_text(manifest.training)}, manifest sha256 {digest})")
    if model_repository is not None:
        for model in export_triton(path, model_repository):
            say(f"{model} (for Triton)")


def _fold_choice(text: str) -> FoldChoice:
    from cmamil_sdk.errors import FieldInvalid

    words: tuple[Literal["best", "all"], ...] = ("best", "all")
    for word in words:
        if text == word:
            return word
    if text.isdecimal():
        return int(text)
    raise FieldInvalid(
        f"--fold {text} is neither 'best', 'all' nor a fold's number; give one of them."
    )


def _folds_text(training: Mapping[str, Any]) -> str:
    """Which folds a bundle holds."""
    if "folds" in training:
        return f"folds {', '.join(str(entry['fold']) for entry in training['folds'])} together"
    return f"fold {training['fold']}"
