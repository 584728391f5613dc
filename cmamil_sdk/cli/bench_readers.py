"""``cmamil bench readers``: what a reader saves on a slide, and that its pixels are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Json, Workers
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table
from cmamil_sdk.wording import counted


def run(
    slide: Annotated[Path, typer.Option(help="A slide that the reader direct or cucim takes.")],
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's directory, to time whole predictions too.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0, if the file is silent.")
    ] = None,
    pairs: Annotated[
        int, typer.Option(help="How often each reader does the work in turns, at least 5.")
    ] = 15,
    workers: Workers = None,
    out: Annotated[Path | None, typer.Option(help="Folder for readers.json.")] = None,
    json: Json = False,
) -> None:
    """Processor time of OpenSlide and of each other reader on the same tiles, in turns."""
    from cmamil_sdk.benchmarks.readers import ReadersBench, measure_readers
    from cmamil_sdk.files import write_json

    bench = ReadersBench(slide=slide, bundle=bundle, mpp=mpp, pairs=pairs, workers=workers)
    if out is not None:
        output_folder(out)
    with Progress(slide.name) as progress:
        document = measure_readers(
            bench, on_pair=lambda what, done: progress.update(done, pairs, what)
        )
    if out is not None:
        write_json(out / "readers.json", document)
    if json:
        say_json(document)
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    slide, environment = document["slide"], document["environment"]
    load = environment["load_average"]
    tiles = ", ".join(f"{name}: {count}" for name, count in slide["tiles"].items())
    say(f"{slide['name']}, {tiles} tiles")
    for name, reader in document["readers"].items():
        say(f"{name}: {reader['reason']}")
    say(
        f"{environment['cpu']}, {environment['cores']} cores; "
        f"load {load['before']} before, {load['after']} after\n"
    )
    header = [
        "CPU-ms per tile",
        "reader",
        "openslide",
        "reader's",
        "ratio",
        "95 %",
        "spread",
        "pairs",
    ]
    say(table(header, [_cells(row) for row in document["rows"]]))
    say("")
    for name, reader in document["readers"].items():
        largest = reader["largest_difference"]
        differ = f"DIFFER by up to {counted(largest, 'grey level')}" if largest else "are the same"
        say(f"the pixels of all tiles {differ}: {name}, openslide")


def _cells(row: dict[str, Any]) -> list[Any]:
    return [
        row["what"],
        row["reader"],
        f"{row['openslide_cpu_ms_per_tile']:.2f}",
        f"{row['cpu_ms_per_tile']:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        f"{row['openslide_spread']:.2f}, {row['spread']:.2f}",
        row["pairs"],
    ]


__all__ = ["run"]
