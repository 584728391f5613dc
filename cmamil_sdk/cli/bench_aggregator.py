"""``cmamil bench aggregator``: an aggregator on every engine by the size of the bag, beside PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.bench_cases import (
    Duration,
    Engines,
    MinSamples,
    Out,
    Pairs,
    Windows,
    engines_in,
    say_machine,
    say_rest,
    ways_table,
)
from cmamil_sdk.cli.lists import names_in, numbers_in
from cmamil_sdk.cli.options import Device, Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json
from cmamil_sdk.errors import FieldInvalid


def run(
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle of your own instead of untrained models.")
    ] = None,
    forms: Annotated[
        str | None,
        typer.Option(
            help="Untrained models, by commas: CMA-MIL's cross attention (nested, nested-bias, global, "
            "none), and hmil. Default: nested."
        ),
    ] = None,
    feature_dim: Annotated[
        int | None, typer.Option(help="Width of their features. Default: 1024.")
    ] = None,
    engine: Engines = None,
    device: Device = "cpu",
    tiles: Annotated[
        str, typer.Option(help="Tiles of a bag at the finest scale, by commas; others follow.")
    ] = "1000,4000,16000,64000",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Within a call; one per core by default.")
    ] = None,
    windows: Windows = 3,
    duration: Duration = 3.0,
    min_samples: MinSamples = 20,
    pairs: Pairs = 15,
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """Latency and memory of an aggregator by engine, precision and number of tiles."""
    from cmamil_sdk.benchmarks.aggregator import (
        AggregatorBench,
        judged,
        measure_aggregators,
        write_aggregators,
    )
    from cmamil_sdk.benchmarks.closed_loop import Loop

    if bundle is not None and (forms is not None or feature_dim is not None):
        raise FieldInvalid(
            "--forms and --feature-dim have no effect with --bundle; leave them out."
        )
    bench = AggregatorBench(
        folder=out,
        bundle=bundle,
        forms=tuple(names_in(forms or "nested", "--forms")),
        feature_dim=1024 if feature_dim is None else feature_dim,
        engines=engines_in(engine),
        device=device,
        tiles=numbers_in(tiles, "--tiles"),
        threads=threads,
        loop=Loop(windows, duration, min_samples),
        pairs=pairs,
    )
    output_folder(out)
    with Progress("aggregator") as progress:
        document = measure_aggregators(
            bench, on_step=lambda what, done, total: progress.update(done, total, what)
        )
    write_aggregators(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
    else:
        _say_plainly(document, judged(document))


def _say_plainly(document: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    settings = document["settings"]
    what = settings["bundle"] or f"untrained models, features {settings['feature_dim']} wide"
    say_machine(document["environment"], str(what))
    say(ways_table(document, first=("form",)))
    for row in document["rows"]:
        if "ratio_limit" in row:
            say(
                f"{row['form']}, {row['tiles']} tiles: matrix products take "
                f"{row['products_share']:.0%} of {row['label']}; if all else took no time, it would be "
                f"{row['ratio_limit']:.2f} times eager"
            )
    say_rest(document, targets)


__all__ = ["run"]
