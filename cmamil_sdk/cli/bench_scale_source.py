"""``cmamil bench scale-source``: coarser scales from the finest one, and from stored levels."""

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
    out: Annotated[Path | None, typer.Option(help="Folder for scale-source.json.")] = None,
    json: Json = False,
) -> None:
    """What --scale-source stored costs on a slide, and how far its pixels are from those of finest."""
    from cmamil_sdk.benchmarks.scale_source import ScaleSourceBench, measure_scale_sources
    from cmamil_sdk.files import write_json

    bench = ScaleSourceBench(slide=slide, scales=scales, mpp=mpp, reader=reader, pairs=pairs)
    if out is not None:
        output_folder(out)
    with Progress(slide.name) as progress:
        document = measure_scale_sources(
            bench, on_pair=lambda done: progress.update(done, pairs, "pairs")
        )
    if out is not None:
        write_json(out / "scale-source.json", document)
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
    say(
        f"\nfinest {document['finest_cpu_s']:.2f} CPU-s, stored {document['stored_cpu_s']:.2f}: ratio "
        f"{document['ratio']:.2f} ({document['ratio_low']:.2f} to {document['ratio_high']:.2f}), "
        f"{document['pairs']} pairs"
    )


__all__ = ["run"]
