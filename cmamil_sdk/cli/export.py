"""``cmamil export``: a trained fold and its encoder become a model bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.output import Progress, say
from cmamil_sdk.cli.parity_tables import parity_text
from cmamil_sdk.cli.plans import ComputeCapability, names_in, plan_table, plan_targets_of


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
            help="What the bundle holds: onnx, always, and plans for tensorrt or tensorrt-rtx."
        ),
    ] = "onnx",
    compute_capability: ComputeCapability = "",
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

    if fold != "best" and not fold.isdecimal():
        raise FieldInvalid(
            f"--fold {fold} is neither 'best' nor a fold's number; give one of them."
        )
    plan_targets = plan_targets_of(names_in(targets, "--targets"), compute_capability)
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
