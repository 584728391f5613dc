"""``cmamil export``: a trained fold and its encoder become a model bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.lists import names_in
from cmamil_sdk.cli.output import Progress, output_folder, say
from cmamil_sdk.cli.parity_tables import parity_text
from cmamil_sdk.cli.plans import ComputeCapability, plan_table, plan_targets_of


def run(
    run_directory: Annotated[Path, typer.Option("--run", help="The run directory.")],
    name: Annotated[str, typer.Option(help="Name of the bundle.")],
    out: Annotated[Path, typer.Option(help="Folder that holds bundles.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    fold: Annotated[
        str, typer.Option(help="Which fold: its number, or best by validation AUC.")
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
    model_repository: Annotated[
        Path | None, typer.Option(help="Folder for the models of the target triton.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write a bundle that misses its gate, and mark it as failed."),
    ] = False,
) -> None:
    """Export encoder and aggregator to ONNX, compare both with the model, hash everything."""
    from cmamil_sdk.bundle.load import read_manifest
    from cmamil_sdk.engines.plans import listed_plans
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.export.bundle import export_bundle
    from cmamil_sdk.export.triton import export_triton, new_models

    if fold != "best" and not fold.isdecimal():
        raise FieldInvalid(
            f"--fold {fold} is neither 'best' nor a fold's number; give one of them."
        )
    asked = names_in(targets, "--targets")
    plan_targets = plan_targets_of(
        asked, compute_capability, option="--targets", others=("onnx", "triton")
    )
    if ("triton" in asked) != (model_repository is not None):
        raise FieldInvalid(
            "The target triton and --model-repository belong together; give both or neither."
        )
    if model_repository is not None:
        new_models(model_repository, name, version)
        output_folder(model_repository)
    with Progress("export") as progress:
        path = export_bundle(
            run_directory,
            out,
            name=name,
            version=version,
            fold=None if fold == "best" else int(fold),
            encoder_weights=weights,
            force=force,
            plan_targets=plan_targets,
            on_plan_progress=lambda phase, done, steps: progress.update(done, steps, phase),
        )
    manifest, digest = read_manifest(path)
    say(parity_text(manifest.encoder_parity, manifest.parity))
    if plan_targets:
        say(f"\n{plan_table(listed_plans(path))}")
    if manifest.parity_failed:
        say(f"FAILED: {manifest.parity_failed}; predict and serve refuse this bundle unless told")
    say(f"{path} (fold {manifest.training['fold']}, manifest sha256 {digest})")
    if model_repository is not None:
        for model in export_triton(path, model_repository):
            say(f"{model} (for Triton)")
