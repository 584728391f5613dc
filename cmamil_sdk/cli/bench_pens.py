"""``cmamil bench pens``: how well pen marks are told from tissue."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import say, say_json, table


def run(
    pictures: Annotated[
        Path, typer.Argument(help="Folder of PNG files; x_mask.png marks the ink of x.png.")
    ],
    um_per_px: Annotated[float, typer.Option(help="Micrometres per pixel of the pictures.")],
    pen_min_um2: Annotated[
        float, typer.Option(min=0.0, help="The smallest mark, square micrometres.")
    ] = 50_000.0,
    json: Json = False,
) -> None:
    """Precision and recall of `--pens exclude` against painted masks, for each half of a picture."""
    from cmamil_sdk.benchmarks.pens import measure_marks

    rows = measure_marks(pictures, um_per_px=um_per_px, min_um2=pen_min_um2)
    if json:
        say_json(
            {"pens": [asdict(r) | {"precision": r.precision, "recall": r.recall} for r in rows]}
        )
        return
    header = ["picture", "half", "cells", "found", "marked", "precision", "recall"]
    say(
        table(
            header,
            [
                [
                    *(row.picture, row.part, row.cells, row.found),
                    "-" if row.marked is None else row.marked,
                    *("-" if x is None else f"{x:.3f}" for x in (row.precision, row.recall)),
                ]
                for row in rows
            ],
        )
    )
