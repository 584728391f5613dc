"""``cmamil evaluate``: score a run's folds again on their test slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import output_folder, say, say_json


def run(
    run_directory: Annotated[Path, typer.Option("--run", help="The run directory.")],
    features: Annotated[Path, typer.Option(help="Folder of feature files.")],
    labels: Annotated[Path, typer.Option(help="The labels CSV the run was trained with.")],
    out: Annotated[Path | None, typer.Option(help="Also write the metrics as JSON.")] = None,
    json: Json = False,
) -> None:
    """Metrics with confidence intervals from checkpoints and feature files."""
    from cmamil_sdk.cli.train import metrics_table
    from cmamil_sdk.files import write_json
    from cmamil_sdk.training.run import evaluate

    if out is not None:
        output_folder(out.parent)
    summary = evaluate(run_directory, features=features, labels=labels)
    if out is not None:
        write_json(out, summary)
    if json:
        say_json(summary)
    else:
        say(metrics_table(summary))
