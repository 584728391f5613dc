"""``cmamil bench``: how long things take here and how well models learn, repeatably measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli import (
    bench_accuracy,
    bench_aggregator,
    bench_engine,
    bench_parts,
    bench_peers,
    bench_pens,
    bench_readers,
    bench_scale_source,
    bench_serve,
    bench_training,
)
from cmamil_sdk.cli.options import Device, EngineName, Json, Precision, Reader, Workers
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table
from cmamil_sdk.wording import counted

_HELP = "Latency, throughput and accuracy on this machine."
app = typer.Typer(help=_HELP, no_args_is_help=True)
app.command("accuracy")(bench_accuracy.run)
app.command("engine")(bench_engine.run)
app.command("aggregator")(bench_aggregator.run)
app.command("readers")(bench_readers.run)
app.command("pens")(bench_pens.run)
app.command("scale-source")(bench_scale_source.run)
app.command("peers")(bench_peers.run)
app.command("serve")(bench_serve.run)
app.command("floor")(bench_parts.run_floor)
app.command("scales")(bench_parts.run_scales)
app.command("growth")(bench_parts.run_growth)


@app.callback()
def _bench() -> None:
    """Keep the commands' names, however few there are."""


app.command("training")(bench_training.run)


@app.command("slide")
def run_slide(
    bundle: Annotated[Path, typer.Option(help="The bundle's directory, <name>/<version>.")],
    slide: Annotated[Path, typer.Option(help="The slide file.")],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of level 0, if the file is silent.")
    ] = None,
    reader: Reader = "auto",
    windows: Annotated[int, typer.Option(help="Windows, at least 3.")] = 3,
    duration: Annotated[float, typer.Option(help="Shortest length of a window, seconds.")] = 5.0,
    min_samples: Annotated[
        int,
        typer.Option(
            help="Fewest predictions of a window, which goes on until it has them; a p95 needs 20."
        ),
    ] = 20,
    warmup: Annotated[int, typer.Option(help="Predictions before, not counted.")] = 2,
    workers: Workers = None,
    engine: EngineName = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for slide.json and slide.csv.")] = None,
    json: Json = False,
) -> None:
    """Time from opening a slide file to its prediction: one after another, warm page cache."""
    from cmamil_sdk.benchmarks.report import write_report
    from cmamil_sdk.benchmarks.slide import SlideBench, measure_slide

    bench = SlideBench(
        bundle=bundle,
        slide=slide,
        mpp=mpp,
        reader=reader,
        windows=windows,
        duration_s=duration,
        min_samples=min_samples,
        warmup=warmup,
        workers=workers,
        engine=engine,
        device=device,
        precision=precision,
    )
    if out is not None:
        output_folder(out)
    with Progress(slide.name) as progress:

        def report(phase: str, done: int) -> None:
            wanted = warmup if phase == "warm-up" else max(min_samples, done)
            progress.update(done, wanted, phase)

        document = measure_slide(bench, on_prediction=report)
    if out is not None:
        write_report(out, document)
    if json:
        say_json(document)
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    result, environment, slide = document["result"], document["environment"], document["slide"]
    say(
        f"{slide['name']}, {slide['width']} x {slide['height']} px, "
        + ", ".join(f"{name}: {count}" for name, count in slide["tiles"].items())
        + f" tiles; reader {slide['reader']}, {environment['engine']}, "
        f"{counted(document['settings']['workers'], 'worker')}, "
        f"page cache {environment['page_cache']}"
    )
    say(
        f"{environment['cpu']}, {counted(environment['cores'], 'core')}; load {_load(environment)}\n"
    )
    header = ["window", "n", "seconds", "tiles/s", "p50 s", "p90 s", "p95 s", "p99 s"]
    rows = [
        [number, w["n"], round(w["wall_s"], 2), round(w["tiles_per_s"], 1), *_tail(w["latency_s"])]
        for number, w in enumerate(document["windows"], start=1)
    ]
    seconds = sum(window["wall_s"] for window in document["windows"])
    rows.append(
        [
            "all",
            result["n"],
            round(seconds, 2),
            round(result["tiles_per_s"], 1),
            *_tail(result["latency_s"]),
        ]
    )
    say(table(header, rows))
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["stage_shares"].items())
    say(f"\n{_verdict(result)}")
    say(f"stages: {shares}")
    say(
        f"{1000 * result['cpu_s_per_tile']:.1f} CPU-ms per tile, {result['cores_busy']:.2f} cores "
        f"busy, peak memory {result['peak_rss_mb']:.0f} MB"
    )


def _tail(latency_s: dict[str, float | None]) -> list[str]:
    found = [latency_s[name] for name in ("p50", "p90", "p95", "p99")]
    return ["-" if value is None else f"{value:.3f}" for value in found]


def _load(environment: dict[str, Any]) -> str:
    load = environment["load_average"]
    return f"{load['before']} before, {load['after']} after"


def _verdict(result: dict[str, Any]) -> str:
    p95 = result["p95_spread"]
    shown = "unknown" if p95 is None else f"{p95:.3f}"
    return (
        f"{result['verdict']}: median {result['tiles_per_s']:.1f} tiles/s; largest over smallest "
        f"window: throughput {result['throughput_spread']:.3f}, p95 {shown}"
    )
