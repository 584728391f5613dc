"""``cmamil bench training``: an epoch's time and a step's memory, against the published models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.lists import numbers_in
from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table
from cmamil_sdk.wording import counted


def run(
    forms: Annotated[
        str, typer.Option(help="Which, by commas: CMA-MIL's cross attention, and hmil.")
    ] = "nested,nested-bias,global,none,hmil",
    tiles: Annotated[
        int, typer.Option(help="Tiles of a bag at 5x; 4 times as many at 10x, 16 times at 20x.")
    ] = 250,
    feature_dim: Annotated[int, typer.Option(help="Width of the features.")] = 512,
    pairs: Annotated[
        int, typer.Option(help="Steps of each model in turns with the published one, at least 5.")
    ] = 25,
    threads: Annotated[str, typer.Option(help="Numbers of torch threads, by commas.")] = "1,2",
    large: Annotated[
        bool, typer.Option("--large", help="Also a step's memory on a bag of 64,000 tiles at 20x.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for training.json, training.csv and training_memory.csv."),
    ] = None,
    json: Json = False,
) -> None:
    """Training time per 1,000 bags and memory, beside the published models written straight away."""
    from cmamil_sdk.benchmarks.training import TrainingBench, measure_training, write_training

    bench = TrainingBench(
        forms=tuple(name.strip() for name in forms.split(",")),
        tiles=tiles,
        feature_dim=feature_dim,
        pairs=pairs,
        threads=numbers_in(threads, "--threads"),
        large=large,
    )
    if out is not None:
        output_folder(out)
    with Progress("training") as progress:
        document = measure_training(
            bench, on_step=lambda what, done, total: progress.update(done, total, what)
        )
    if out is not None:
        write_training(out, document)
    if json:
        say_json(document)
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    settings, environment = document["settings"], document["environment"]
    load, tiles = environment["load_average"], settings["tiles"]
    say(
        f"{environment['cpu']}, {counted(environment['cores'], 'core')}, torch "
        f"{environment['packages']['torch']}; load {load['before']} before, {load['after']} after"
    )
    say(
        f"bags of {counted(tiles, 'tile')} at 5x, {4 * tiles} at 10x, {16 * tiles} at 20x (hmil: at 20x "
        f"alone), {settings['feature_dim']} wide\n"
    )
    say("seconds per 1,000 bags, from the median step; spread: 90th over 10th percentile")
    header = ["form", "threads", "ours", "published", "ratio", "95 %", "spread", "pairs"]
    say(table(header, [_epoch_cells(row) for row in document["epochs"]]))
    say("\none step's memory in a fresh process, MB: growth is beyond what it held before the step")
    header = ["form", "whose", "tiles at 20x", "bag", "growth", "peak"]
    rows = [*document["memory"], *document["memory_large"]]
    say(table(header, [_memory_cells(row) for row in rows]))


def _epoch_cells(row: dict[str, Any]) -> list[Any]:
    return [
        row["form"],
        row["threads"],
        round(row["ours_s"], 1),
        round(row["published_s"], 1),
        f"{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
        f"{row['ours_spread']:.2f}, {row['published_spread']:.2f}",
        row["pairs"],
    ]


def _memory_cells(row: dict[str, Any]) -> list[Any]:
    sizes = (round(row[name]) for name in ("bag_mb", "growth_mb", "peak_mb"))
    return [row["form"], row["who"], row["finest_tiles"], *sizes]


__all__ = ["run"]
