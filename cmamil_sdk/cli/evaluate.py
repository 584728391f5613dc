"""``cmamil evaluate``: score a run's folds again, or an exported bundle on any labelled slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Device, Json
from cmamil_sdk.cli.output import note, output_folder, say, say_json
from cmamil_sdk.cli.sources import (
    DataRoot5x,
    DataRoot10x,
    DataRoot20x,
    FeaturesFolder,
    Labels,
    features_of,
)


def run(
    run_directory: Annotated[
        Path | None, typer.Option("--run", help="A run directory, whose folds are scored again.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's directory, <name>/<version>.")
    ] = None,
    features: FeaturesFolder = None,
    labels: Labels = None,
    data_root_5x: DataRoot5x = None,
    data_root_10x: DataRoot10x = None,
    data_root_20x: DataRoot20x = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, predictions.csv, report.html.")
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Metrics with confidence intervals; with --out also each slide's answer, plots and a page.

    Features and labels are named as for training: a run's are those it was trained with, a bundle's
    any of its making. A run is scored by torch, a bundle's aggregator by onnxruntime, both on --device.
    """
    from cmamil_sdk.cli.train import metrics_table
    from cmamil_sdk.errors import FieldInvalid, OutputExists
    from cmamil_sdk.training.evaluation import evaluate_bundle, evaluate_run
    from cmamil_sdk.training.outputs import write_evaluation

    if (run_directory is None) == (bundle is None):
        raise FieldInvalid("Give either --run or --bundle, which says what is to be evaluated.")
    source = features_of(
        {
            "features": features,
            "data_root_5x": data_root_5x,
            "data_root_10x": data_root_10x,
            "data_root_20x": data_root_20x,
        }
    )
    if out is not None:
        if (out / "metrics.json").exists() or (out / "config.json").exists():
            raise OutputExists(
                f"{out} holds a training run or an evaluation already; name another folder."
            )
        output_folder(out)
    if run_directory is not None:
        evaluation = evaluate_run(run_directory, features=source, labels=labels, device=device)
    elif bundle is not None and labels is not None and isinstance(source, Path):
        evaluation = evaluate_bundle(bundle, features=source, labels=labels, device=device)
    else:
        raise FieldInvalid(
            "A bundle is evaluated on feature files of `cmamil features`; give --features and "
            "--labels."
        )
    if evaluation.flattered:
        note(f"cmamil: warning: {evaluation.caveat}")
    if out is not None:
        write_evaluation(out, evaluation)
    if json:
        say_json(evaluation.summary)
    else:
        say(metrics_table(evaluation.summary))
