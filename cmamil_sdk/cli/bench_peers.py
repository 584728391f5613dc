"""``cmamil bench peers``: this package beside other tools, from slide file to features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import Progress, note, output_folder, say, say_json, table

_ALL = "cma-mil-recipe,dataloader,lazyslide,tiatoolbox,slide2vec"


def run(
    prepare: Annotated[
        Path | None,
        typer.Option(help="Make the other tools' environments in this folder, and do no more."),
    ] = None,
    environments: Annotated[
        Path | None, typer.Option(help="The folder that --prepare filled.")
    ] = None,
    tools: Annotated[str, typer.Option(help="Which tools to compare with, by commas.")] = _ALL,
    rounds: Annotated[int, typer.Option(help="How often every tool runs, at least 5.")] = 15,
    slide: Annotated[
        Path | None, typer.Option(help="Another slide than the generated one; at 20x.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for rounds as they finish, tables, chart and logs.")
    ] = Path("bench"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rounds in --out.")
    ] = False,
    json: Json = False,
) -> None:
    """Slide to features by this package and by others, in turns (docs/performance.md)."""
    from cmamil_sdk.benchmarks.peers.measure import PeersBench, measure_peers
    from cmamil_sdk.benchmarks.peers.report import judged, write_peers
    from cmamil_sdk.benchmarks.peers.tools import prepare_environments

    if prepare is not None:
        output_folder(prepare)
        prepare_environments(prepare, on_step=note)
        return
    bench = PeersBench(
        out=out,
        environments=environments,
        tools=tuple(name.strip() for name in tools.split(",")),
        rounds=rounds,
        slide=slide,
        resume=resume,
    )
    output_folder(out)
    with Progress("peers") as progress:
        document = measure_peers(
            bench, on_run=lambda what, done, total: progress.update(done, total, what)
        )
    write_peers(out, document)
    if json:
        say_json({**document, "targets": judged(document)})
    else:
        _say_plainly(document)


def _say_plainly(document: dict[str, Any]) -> None:
    from cmamil_sdk.benchmarks.peers.report import judged
    from cmamil_sdk.benchmarks.targets import TARGET_HEADER, verdict_rows

    environment = document["environment"]
    load = environment["load_average"]
    say(
        f"{document['settings']['slide']}; {environment['cpu']}, {environment['cores']} cores; "
        f"load {load['before']} before, {load['after']} after\n"
    )
    header = ["tool", "batch", "tiles", "tiles/s", "CPU-ms per tile", "peak MB", "spread"]
    say(table(header, [_tool_cells(tool) for tool in document["tools"]]))
    say("")
    header = ["", "against", "times faster", "95 %", "pairs"]
    say(table(header, [_ratio_cells(ratio) for ratio in document["ratios"]]))
    say("")
    say(table(["tool", "tiles", "also ours", "cosine to ours"], _agreement(document)))
    targets = verdict_rows(judged(document))
    if targets:
        say("")
        say(table(TARGET_HEADER, targets))


def _tool_cells(tool: dict[str, Any]) -> list[Any]:
    return [
        tool["label"],
        tool["batch"],
        tool["tiles"],
        round(tool["tiles_per_s"], 1),
        round(tool["cpu_ms_per_tile"], 1),
        round(tool["peak_mb"]),
        f"{tool['spread']:.2f}",
    ]


def _ratio_cells(ratio: dict[str, Any]) -> list[Any]:
    interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
    return [ratio["ours"], ratio["peer"], f"{ratio['ratio']:.2f}", interval, ratio["pairs"]]


def _agreement(document: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            row["tool"],
            row["tiles"],
            row["shared"],
            f"{row['cosine_mean']:.5f}, worst {row['cosine_worst']:.5f}" if row["shared"] else "-",
        ]
        for row in document["agreement"]
    ]


__all__ = ["run"]
