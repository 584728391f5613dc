"""``cmamil bench serve``: the server, by the number of its clients, and beside the local predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.bench_cases import Duration, MinSamples, Out, Windows, say_machine
from cmamil_sdk.cli.lists import numbers_in
from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table


def run(
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle of your own instead of one of shufflenet_v2_x1_0.")
    ] = None,
    slides: Annotated[int, typer.Option(help="How many different slides are generated.")] = 32,
    concurrency: Annotated[
        str, typer.Option(help="Clients of the closed loop, by commas.")
    ] = "1,2,4,8,16",
    rates: Annotated[
        str,
        typer.Option(
            help="Of the open loop, by commas, in percent of what the closed loop reached."
        ),
    ] = "50,80,120",
    windows: Windows = 3,
    duration: Duration = 10.0,
    min_samples: MinSamples = 20,
    pairs: Annotated[int, typer.Option(help="Turns with the local predictor, at least 5.")] = 15,
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """Latency and slides a minute of the server, cold and cached, in closed and open loops."""
    from cmamil_sdk.benchmarks.closed_loop import Loop
    from cmamil_sdk.benchmarks.serve import ServeBench, judged, measure_serve, write_serve

    bench = ServeBench(
        folder=out,
        bundle=bundle,
        slides=slides,
        concurrency=numbers_in(concurrency, "--concurrency"),
        rates=numbers_in(rates, "--rates"),
        loop=Loop(windows, duration, min_samples, warmup=2),
        pairs=pairs,
    )
    output_folder(out)
    with Progress("serve") as progress:
        document = measure_serve(
            bench, on_step=lambda what, done, total: progress.update(done, total, what)
        )
    write_serve(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
    else:
        _say_plainly(document, judged(document))


def _say_plainly(document: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    from cmamil_sdk.benchmarks.targets import TARGET_HEADER, verdict_rows

    environment, settings = document["environment"], document["settings"]
    say_machine(
        environment,
        f"{settings['slides']} slides of {document['tiles_per_slide']:.0f} tiles; "
        f"{environment['engine']}, {environment['workers']} workers",
    )
    header = ["load", "slides", "clients", "slides/min", "spreads", "", "n", "refused"]
    header += ["p50 s", "p95 s", "p99 s", "health p99 ms", "lag p99 ms"]
    say(table(header, [_cells(row) for row in document["rows"]]))
    one, many = document["beside_local"]["slide"], document["beside_local"]["per_minute"]
    say(
        f"\none slide: {one['served_s']:.3f} s served, {one['local_s']:.3f} s locally; "
        f"{_ratio(one)} times as long"
    )
    say(
        f"{many['slides']} slides, {many['callers']} clients: {many['served_per_min']:.0f} a minute "
        f"served, {many['local_per_min']:.0f} locally; {_ratio(many)} times as many\n"
    )
    say(table(TARGET_HEADER, verdict_rows(targets)))


def _cells(row: dict[str, Any]) -> list[Any]:
    p95 = row["p95_spread"]
    spreads = f"{row['throughput_spread']:.2f}, {'-' if p95 is None else f'{p95:.2f}'}"
    clients = row["concurrency"] or f"{row['rate_percent']} %"
    health, lag = row["health_s"] and row["health_s"]["p99"], row["lag_p99_s"]
    return [
        *(row["load"], row["slides"], clients, f"{row['slides_per_min']:.0f}", spreads),
        *(row["verdict"], row["n"], row["refused"]),
        *(_seconds(row["latency_s"][name]) for name in ("p50", "p95", "p99")),
        *("-" if value is None else f"{1000 * value:.1f}" for value in (health, lag)),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3f} (95 % {row['low']:.3f} to {row['high']:.3f}, {row['pairs']} pairs)"


__all__ = ["run"]
