"""``cmamil bench scales``: what it costs to read several scales in one pass, and otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Json, Reader
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table


def run(
    slide: Annotated[Path, typer.Option(help="The slide file.")],
    scales: Annotated[str, typer.Option(help="Magnifications, nested.")] = "5x,10x,20x",
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0, if the file is silent.")
    ] = None,
    reader: Reader = "auto",
    pairs: Annotated[int, typer.Option(help="How often each way is taken, at least 5.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Folder for scales.json.")] = None,
    json: Json = False,
) -> None:
    """All scales in one pass against stored levels, and against one scale after another."""
    from cmamil_sdk.benchmarks.scales import ScalesBench, measure_scales
    from cmamil_sdk.files import write_json

    bench = ScalesBench(slide=slide, scales=scales, mpp=mpp, reader=reader, pairs=pairs)
    if out is not None:
        output_folder(out)
    with Progress(slide.name) as progress:
        document = measure_scales(
            bench, on_pair=lambda way, done: progress.update(done, pairs, way)
        )
    if out is not None:
        write_json(out / "scales.json", document)
    if json:
        say_json(document)
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    environment = document["environment"]
    load = environment["load_average"]
    say(
        f"{document['slide']['name']}; {environment['cpu']}, {environment['cores']} cores; "
        f"load {load['before']} before, {load['after']} after\n"
    )
    rows = [
        [name, found["tiles"], found["stored_level"], f"{found['mean_difference']:.2f}"]
        for name, found in document["scales"].items()
    ]
    say(table(["scale", "tiles", "stored level", "mean difference, grey levels"], rows))
    say("")
    header = ["CPU-seconds", "so", "one pass", "ratio", "95 %", "pairs"]
    say(table(header, [_cells(row) for row in document["rows"]]))


def _cells(row: dict[str, Any]) -> list[Any]:
    return [
        row["way"],
        f"{row['cpu_s']:.2f}",
        f"{row['one_pass_cpu_s']:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        row["pairs"],
    ]


__all__ = ["run"]
