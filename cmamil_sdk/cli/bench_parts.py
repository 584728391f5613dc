"""``cmamil bench floor``, ``scales`` and ``growth``: where time goes within a run of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import EngineName, Json
from cmamil_sdk.cli.output import Progress, output_folder, say, say_json, table

Out = Annotated[Path, typer.Option(help="Folder for the generated slides and the results.")]
Slide = Annotated[Path | None, typer.Option(help="Another slide than the generated one.")]


def run_floor(
    slide: Slide = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Another bundle than one of shufflenet_v2_x1_0 at 20x.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often, at least 5.")] = 15,
    engine: EngineName = "auto",
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """A whole run beside what decoding and inference alone cost, and where the rest goes."""
    from cmamil_sdk.benchmarks.floor import FloorBench, judged, measure_floor, write_floor

    bench = FloorBench(folder=out, slide=slide, bundle=bundle, rounds=rounds, engine=engine)
    output_folder(out)
    with Progress("floor") as progress:
        document = measure_floor(bench, on_round=lambda done, n: progress.update(done, n, "rounds"))
    write_floor(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
        return
    result = document["result"]
    _say_machine(
        document, f"{document['settings']['slide']}, {sum(document['tiles'].values())} tiles"
    )
    share = [f"{result[name]:.3f}" for name in ("share_of_floor", "share_low", "share_high")]
    cpu_ms = [f"{result[f'{name}_cpu_ms_per_tile']:.2f}" for name in ("decode", "infer", "run")]
    say(f"decode {cpu_ms[0]}, infer {cpu_ms[1]}, the whole run {cpu_ms[2]} CPU-ms per tile")
    say(
        f"floor {result['floor_s']:.2f} s, run {result['total_s']:.2f} s "
        f"({result['tiles_per_s']:.0f} tiles/s, spread {result['total_spread']:.2f}); "
        f"share of the floor {share[0]}, 95 % {share[1]} to {share[2]}\n"
    )
    shares = [
        [stage, f"{seconds:.3f}", f"{seconds / result['total_s']:.1%}"]
        for stage, seconds in result["stages_s"].items()
    ]
    say(table(["stage", "seconds", "share"], shares))
    _say_targets(judged(document))


def run_scales(
    slide: Slide = None,
    pairs: Annotated[int, typer.Option(help="How often each way, at least 5.")] = 15,
    engine: EngineName = "auto",
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """5x, 10x and 20x from one pass over a slide, against a pass for each."""
    from cmamil_sdk.benchmarks.scales import ScalesBench, judged, measure_scales, write_scales

    bench = ScalesBench(folder=out, slide=slide, pairs=pairs, engine=engine)
    output_folder(out)
    with Progress("scales") as progress:
        document = measure_scales(
            bench, on_pair=lambda what, done: progress.update(done, pairs, what)
        )
    write_scales(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
        return
    _say_machine(
        document,
        f"{document['settings']['slide']}, tiles together {document['tiles_together']}, "
        f"apart {document['tiles_apart']}",
    )
    header = ["seconds", "three passes", "one pass", "ratio", "95 %", "spread", "pairs"]
    rows = [
        [
            row["what"],
            f"{row['apart_s']:.2f}",
            f"{row['together_s']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['apart_spread']:.2f}, {row['together_spread']:.2f}",
            row["pairs"],
        ]
        for row in document["rows"]
    ]
    say(table(header, rows))
    _say_targets(judged(document))


def run_growth(
    pairs: Annotated[int, typer.Option(help="How often each slide, at least 5.")] = 9,
    out: Out = Path("bench"),
    json: Json = False,
) -> None:
    """Cost per tile and memory at 100,000 tiles, against 5,000; all but the network."""
    from cmamil_sdk.benchmarks.growth import GrowthBench, judged, measure_growth, write_growth

    bench = GrowthBench(folder=out, pairs=pairs)
    output_folder(out)
    with Progress("growth") as progress:
        document = measure_growth(bench, on_pair=lambda done, n: progress.update(done, n, "pairs"))
    write_growth(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
        return
    result = document["result"]
    _say_machine(document, " and ".join(document["settings"]["slides"]))
    say(
        f"{result['few_ms_per_tile']:.3f} ms per tile of {document['tiles'][0]}, "
        f"{result['many_ms_per_tile']:.3f} of {document['tiles'][1]}: ratio {result['ratio']:.3f}, "
        f"95 % {result['low']:.3f} to {result['high']:.3f}\n"
    )
    header = ["tiles", "MB before", "peak MB", "features MB", "peak less before and features"]
    rows = [
        [
            row["tiles"],
            *(round(row[name]) for name in ("before_mb", "peak_mb", "features_mb")),
            round(row["peak_mb"] - row["before_mb"] - row["features_mb"]),
        ]
        for row in document["memory"]
    ]
    say(table(header, rows))
    _say_targets(judged(document))


def _say_machine(document: dict[str, Any], what: str) -> None:
    environment = document["environment"]
    load, engine = environment["load_average"], environment.get("engine", "no network")
    say(f"{what}; {engine}")
    say(
        f"{environment['cpu']}, {environment['cores']} cores; "
        f"load {load['before']} before, {load['after']} after\n"
    )


def _say_targets(targets: list[dict[str, Any]]) -> None:
    from cmamil_sdk.benchmarks.targets import TARGET_HEADER, verdict_rows

    say("")
    say(table(TARGET_HEADER, verdict_rows(targets)))


__all__ = ["run_floor", "run_growth", "run_scales"]
