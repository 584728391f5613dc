"""``cmamil bench engine``: an encoder on every engine and in every precision, beside PyTorch."""

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
from cmamil_sdk.cli.lists import numbers_in
from cmamil_sdk.cli.options import Device, Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json


def run(
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle of your own instead of one of shufflenet_v2_x1_0.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Of its encoder, if they came from a file.")
    ] = None,
    engine: Engines = None,
    device: Device = "cpu",
    batch: Annotated[str, typer.Option(help="Tiles of a call, by commas.")] = "1,16,32",
    callers: Annotated[
        int | None, typer.Option(min=1, help="Threads that call; one per core by default.")
    ] = None,
    windows: Windows = 3,
    duration: Duration = 3.0,
    min_samples: MinSamples = 20,
    pairs: Pairs = 15,
    loads: Annotated[int, typer.Option(help="How often the bundle is loaded.")] = 5,
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """Throughput, latency and memory of an encoder by engine, precision and batch."""
    from cmamil_sdk.benchmarks.closed_loop import Loop
    from cmamil_sdk.benchmarks.engine import (
        EngineBench,
        judged,
        measure_engines,
        write_engines,
    )

    bench = EngineBench(
        folder=out,
        bundle=bundle,
        weights=weights,
        engines=engines_in(engine),
        device=device,
        batches=numbers_in(batch, "--batch"),
        callers=callers,
        loop=Loop(windows, duration, min_samples),
        pairs=pairs,
        loads=loads,
    )
    output_folder(out)
    with Progress("engine") as progress:
        document = measure_engines(
            bench, on_step=lambda what, done, total: progress.update(done, total, what)
        )
    write_engines(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
    else:
        _say_plainly(document, judged(document))


def _say_plainly(document: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    settings, loading = document["settings"], document["loading"]
    say_machine(document["environment"], f"{settings['bundle']}, encoder {settings['encoder']}")
    say(ways_table(document))
    say(f"\nby default: {document['default']} ({document['default_reason']})")
    if document["int8_over_default"] is not None:
        say(f"int8 over the default: {document['int8_over_default']:.2f}")
    say(
        f"the bundle is loaded in {loading['load_s']:.2f} s and ready in {loading['ready_s']:.2f} s "
        f"({loading['engine']}, median of {len(loading['runs_s'])}, spread {loading['spread']:.2f})"
    )
    say_rest(document, targets)


__all__ = ["run"]
