"""The charts of docs/, each drawn from the CSV beside it: ``make docs-figures``."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.files import read_csv, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, str]]

_OURS, _THEIRS = "#1b6ca8", "#9aa5b1"
_STAGES = {
    "open": "#c9d6df",
    "tissue": "#8fb996",
    "decode": "#e3b34c",
    "encode": "#1b6ca8",
    "aggregate": "#9f6ba0",
    "rest": "#b0b0b0",
}
_PERCENTILES = {"p50": "#1b6ca8", "p95": "#e3b34c", "p99": "#b5485d"}
_DPI = 110


def draw_peers(table: Path, picture: Path) -> None:
    """Tiles a second of every tool, the fastest on top, from ``peers.csv``."""
    rows = sorted(_rows(table), key=lambda row: float(row["tiles_per_s"]))
    figure, axes = _figure(9.0, 1.3 + 0.5 * len(rows))
    speeds = [float(row["tiles_per_s"]) for row in rows]
    colours = [_OURS if row["tool"].startswith("ours") else _THEIRS for row in rows]
    bars = axes.barh([_label(row) for row in rows], speeds, color=colours)
    notes = [f"{speed:.0f}{_times(row)}" for speed, row in zip(speeds, rows, strict=True)]
    axes.bar_label(bars, labels=notes, padding=4, fontsize=9)
    axes.set_xlim(0, 1.25 * max(speeds))
    axes.set_xlabel("tiles a second, from slide file to features (median)")
    _save(figure, picture)


def draw_floor(table: Path, picture: Path) -> None:
    """Where the time of one slide goes, beside the floor, from ``floor.csv``."""
    rows = _rows(table)
    figure, axes = _figure(9.0, 1.6 + 0.6 * len(rows))
    names = [f"{row['what']}, {row['engine']}" for row in rows]
    left = [0.0] * len(rows)
    for stage, colour in _STAGES.items():
        widths = [1000 * float(row[f"{stage}_s"]) / int(row["tiles"]) for row in rows]
        axes.barh(names, widths, left=left, color=colour, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel("milliseconds a tile, all cores together")
    axes.legend(ncols=len(_STAGES), loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    axes.invert_yaxis()
    _save(figure, picture)


def draw_engine(table: Path, picture: Path) -> None:
    """Tiles a second of an encoder, a bar for each way to run it, from ``engine.csv``."""
    rows = _rows(table)
    names = [
        f"{row['label']}, {row['tiles']} tiles a call, {row['callers']} x {row['threads']} threads"
        for row in rows
    ]
    values = [float(row["tiles_per_s"]) for row in rows]
    _draw_ways(rows, names, values, "tiles a second, encoder alone (median)", picture)


def draw_aggregator(table: Path, picture: Path) -> None:
    """Milliseconds a bag of an aggregator, a bar for each way to run it, from ``aggregator.csv``."""
    rows = _rows(table)
    names = [f"{row['form']}, {row['tiles']} tiles, {row['label']}" for row in rows]
    values = [1000 * float(row["p50_s"]) for row in rows]
    _draw_ways(rows, names, values, "milliseconds a bag (median)", picture)


def draw_serve(table: Path, picture: Path) -> None:
    """How long requests took, a line from p50 to p99 for each kind of load, from ``serve.csv``."""
    rows = _rows(table)
    figure, axes = _figure(9.0, 1.2 + 0.36 * len(rows))
    for place, row in enumerate(rows):
        known = [float(row[f"{name}_s"]) for name in _PERCENTILES if row[f"{name}_s"]]
        axes.plot(known, [place] * len(known), color=_THEIRS, zorder=1)
        axes.annotate(
            f"{float(row['slides_per_min']):.0f} slides/min",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
        )
    for name, colour in _PERCENTILES.items():
        found = [(float(row[f"{name}_s"]), n) for n, row in enumerate(rows) if row[f"{name}_s"]]
        axes.scatter(
            [x for x, _ in found], [n for _, n in found], color=colour, label=name, zorder=2
        )
    axes.set_yticks(range(len(rows)), [_load(row) for row in rows])
    axes.set_xscale("log")
    axes.set_xlabel("seconds from request to answer")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes.invert_yaxis()
    _save(figure, picture)


DRAWERS: dict[str, Callable[[Path, Path], None]] = {
    "aggregator": draw_aggregator,
    "engine": draw_engine,
    "floor": draw_floor,
    "peers": draw_peers,
    "serve": draw_serve,
}
"""What draws ``<name>.csv``."""


def redraw(folder: Path) -> list[Path]:
    """Draw every chart of ``folder`` anew from its CSV; returns the pictures.

    Raises:
        ConfigInvalid: nothing knows how to draw one of the pictures there, or its CSV is missing.
    """
    drawn = []
    for picture in sorted(folder.glob("*.png")):
        table = picture.with_suffix(".csv")
        if picture.stem not in DRAWERS or not table.is_file():
            raise ConfigInvalid(
                f"{picture} cannot be drawn: there is no {table.name} beside it, or nothing draws "
                f"{picture.stem}; known are {', '.join(DRAWERS)}."
            )
        DRAWERS[picture.stem](table, picture)
        drawn.append(picture)
    return drawn


def _draw_ways(rows: Rows, names: list[str], values: list[float], axis: str, picture: Path) -> None:
    """Bars with how many times as fast as the eager model, which is grey."""
    figure, axes = _figure(9.0, 1.0 + 0.36 * len(rows))
    colours = [_THEIRS if "eager" in row["label"] else _OURS for row in rows]
    bars = axes.barh(names, values, color=colours)
    times = [f"   ({float(row['ratio']):.1f} x eager)" if row["ratio"] else "" for row in rows]
    notes = [
        f"{value:,.0f}{note}" if value >= 100 else f"{value:.3g}{note}"
        for value, note in zip(values, times, strict=True)
    ]
    axes.bar_label(bars, labels=notes, padding=4, fontsize=9)
    axes.set_xlim(0, 1.5 * max(values))
    axes.set_xlabel(axis)
    axes.invert_yaxis()
    _save(figure, picture)


def _rows(table: Path) -> Rows:
    rows, _ = read_csv(table, error=ConfigInvalid)
    return list[dict[str, str]](rows)


def _label(row: dict[str, str]) -> str:
    named = row["label"].replace(" (", "\n(")
    return named if row["precision"] in named else f"{named}, {row['precision']}"


def _load(row: dict[str, str]) -> str:
    if row["load"] == "open":
        return f"{row['slides']}, {float(row['rate_per_min']):.0f} requests/min at random"
    clients = int(row["concurrency"])
    return f"{row['slides']}, {clients} client{'s' if clients > 1 else ''}"


def _times(row: dict[str, str]) -> str:
    """How many times faster ours is at its fastest, for the other tools."""
    ratios = [float(v) for name, v in row.items() if name.endswith("_ratio") and v]
    return f"   (ours {max(ratios):.1f} times as fast)" if ratios else ""


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, picture: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    write_atomic(picture, data.getvalue())


if __name__ == "__main__":
    for path in redraw(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")


__all__ = [
    "DRAWERS",
    "draw_aggregator",
    "draw_engine",
    "draw_floor",
    "draw_peers",
    "draw_serve",
    "redraw",
]
