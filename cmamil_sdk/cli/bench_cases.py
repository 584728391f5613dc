"""What ``cmamil bench engine`` and ``aggregator`` share: options, tables of ways to run, targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cmamil_sdk.cli.lists import names_in
from cmamil_sdk.cli.output import say, table
from cmamil_sdk.wording import counted

Engines = Annotated[
    str | None, typer.Option("--engine", help="Which, by commas. Default: all of this machine.")
]
Windows = Annotated[int, typer.Option(help="Windows of each way, at least 3.")]
Duration = Annotated[float, typer.Option(help="Shortest length of a window, seconds.")]
MinSamples = Annotated[
    int, typer.Option(help="Fewest calls of a window, which goes on until it has them.")
]
Pairs = Annotated[
    int, typer.Option(help="Turns of each with the eager model of PyTorch, at least 5.")
]
Out = Annotated[
    Path, typer.Option(help="Folder for what is made to measure with, and for the results.")
]


def engines_in(text: str | None) -> tuple[str, ...]:
    """The engines that are asked for."""
    from cmamil_sdk.engines.choose import ENGINES

    return ENGINES if text is None else tuple(names_in(text, "--engine"))


def say_machine(environment: dict[str, Any], what: str) -> None:
    """What was measured and where."""
    load = environment["load_average"]
    say(what)
    say(
        f"{environment['cpu']}, {counted(environment['cores'], 'core')}; "
        f"load {load['before']} before, {load['after']} after\n"
    )


def ways_table(document: dict[str, Any], first: Sequence[str] = ()) -> str:
    """A line for each way that was measured; ``first``: fields in front."""
    header = [*first, "engine", "tiles", "threads", "tiles/s", "p50 ms", "p95 ms", "spreads", ""]
    header += ["peak MB", "times eager", "95 %", "in CPU time"]
    rows = [[*(row[name] for name in first), *_cells(row)] for row in document["rows"]]
    return table(header, rows)


def say_rest(document: dict[str, Any], targets: list[dict[str, Any]]) -> None:
    """Gates that are missed, what could not be run, and the targets."""
    from cmamil_sdk.benchmarks.targets import TARGET_HEADER, verdict_rows

    for text in dict.fromkeys(row["missed"] for row in document["rows"] if row["missed"]):
        say(f"\n{text}")
    if document["not_here"]:
        say("\nnot here:")
    for name, why in document["not_here"].items():
        say(f"  {name}: {why}")
    if targets:
        say(f"\n{table(TARGET_HEADER, verdict_rows(targets))}")


def _cells(row: dict[str, Any]) -> list[Any]:
    spreads = (row["throughput_spread"], row["p95_spread"])
    ratios = ["", "", ""]
    if "ratio" in row:
        interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        ratios = [f"{row['ratio']:.2f}", interval, f"{row['cpu_ratio']:.2f}"]
    return [
        row["label"],
        row["tiles"],
        f"{row['callers']} x {row['threads']}",
        round(row["tiles_per_s"]),
        *(_shown(row["latency_s"][name], 1000, 1) for name in ("p50", "p95")),
        ", ".join(_shown(value, 1, 2) for value in spreads),
        row["verdict"],
        round(row["peak_mb"]),
        *ratios,
    ]


def _shown(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


__all__ = [
    "Duration",
    "Engines",
    "MinSamples",
    "Out",
    "Pairs",
    "Windows",
    "engines_in",
    "say_machine",
    "say_rest",
    "ways_table",
]
