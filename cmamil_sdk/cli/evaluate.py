"""``cmamil evaluate``: score a run's folds again, or an exported bundle on any labelled slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Device, EngineName, Json
from cmamil_sdk.cli.output import output_folder, say, say_json


def run(
    features: Annotated[Path, typer.Option(help="Folder of feature files.")],
    labels: Annotated[
        Path,
        typer.Option(
            help="Labels CSV: the one a run was trained with; for a bundle, of any slides."
        ),
    ],
    run_directory: Annotated[
        Path | None, typer.Option("--run", help="A run directory, whose folds are scored again.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's directory, <name>/<version>.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, predictions.csv, report.html.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Metrics with confidence intervals; with --out also each slide's answer, plots and a page.

    --engine and --device are of a bundle; a run is scored where it was trained.
    """
    from cmamil_sdk.cli.train import metrics_table
    from cmamil_sdk.errors import FieldInvalid
    from cmamil_sdk.training.evaluation import evaluate_bundle, evaluate_run
    from cmamil_sdk.training.outputs import write_evaluation

    if (run_directory is None) == (bundle is None):
        raise FieldInvalid("Give either --run or --bundle, which says what is to be evaluated.")
    if run_directory is not None and (engine, device) != ("auto", "auto"):
        raise FieldInvalid(
            "--engine and --device have no effect on a run, which is scored by torch on the device "
            "of its training; leave them out, or evaluate its bundle."
        )
    if out is not None:
        output_folder(out)
    if run_directory is not None:
        evaluation = evaluate_run(run_directory, features=features, labels=labels)
    else:
        evaluation = evaluate_bundle(
            bundle or Path(), features=features, labels=labels, engine=engine, device=device
        )
    if out is not None:
        write_evaluation(out, evaluation)
    if json:
        say_json(evaluation.summary)
    else:
        say(metrics_table(evaluation.summary))
