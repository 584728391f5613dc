"""``cmamil bench accuracy``: how well the models learn, as tables with targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.wording import counted


def run(
    name: Annotated[
        str,
        typer.Argument(metavar="TABLE", help="conjunction, hierarchy, needle, musk or ablation."),
    ],
    rows: Annotated[
        list[str] | None, typer.Option(help="Some rows of the table; repeat for several.")
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(help="Seeds; repeat for several. Without: as many as each row's definition."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of musk1.csv.gz and musk2.csv.gz, for musk.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for <table>.json and .csv, written row by row.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Keep the rows that stand in --out already, and run the others.")
    ] = False,
    json: Json = False,
) -> None:
    """Train and score each row of a table of docs/accuracy.md, on the CPU, and judge its targets."""
    from cmamil_sdk.benchmarks.accuracy.report import rows_to_keep, write_table
    from cmamil_sdk.benchmarks.accuracy.table import run_table
    from cmamil_sdk.benchmarks.accuracy.tables import make_table

    wanted = make_table(name, data)
    if resume and out is None:
        raise ConfigInvalid("--resume goes on from the tables in --out; name the folder.")
    if out is not None:
        output_folder(out)
    kept = rows_to_keep(out, wanted) if resume and out is not None else None

    def keep(so_far: dict[str, Any]) -> None:
        if out is not None:
            write_table(out, so_far)

    with Progress(name) as progress:
        document = run_table(
            wanted,
            rows=rows or None,
            seeds=seeds or None,
            kept=kept,
            on_run=progress.update,
            on_row=keep,
        )
    if json:
        say_json(document)
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    from cmamil_sdk.benchmarks.accuracy.report import score_names

    names = score_names(document)
    say(f"{document['title']}; mean (standard deviation)\n")
    lines = [
        [
            name,
            *(_cell(row, score) for score in names),
            len(next(iter(row["scores"].values()))),
            row["seconds"],
        ]
        for name, row in document["rows"].items()
    ]
    say(table(["row", *(name.replace("_", " ") for name in names), "n", "seconds"], lines))
    if document["targets"]:
        say("")
    for verdict in document["targets"]:
        met = "met" if verdict["met"] else "NOT MET"
        aim = {True: ", aim met", False: ", aim not met", None: ""}[verdict["aim_met"]]
        say(f"{met}{aim}: {verdict['target']}: {verdict['value']:.3f}")
    machine = document["environment"]
    say(f"\n{document['seconds']:.0f} s on {machine['cpu']}, {counted(machine['cores'], 'core')}")


def _cell(row: dict[str, Any], score: str) -> str:
    if score not in row["mean"]:
        return "-"
    std = row["std"][score]
    return f"{row['mean'][score]:.3f}" + ("" if std is None else f" ({std:.3f})")
