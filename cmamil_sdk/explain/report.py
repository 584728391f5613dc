"""One HTML page with every slide's answer and picture; it needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from cmamil_sdk.explain.page import html_page
from cmamil_sdk.files import write_atomic
from cmamil_sdk.predict import Prediction


@dataclass(frozen=True)
class ReportRow:
    """One slide of the page: its answer, its true label if known, and its heatmap's file name."""

    prediction: Prediction
    truth: str | None
    heatmap: str | None


def write_report(
    path: Path,
    *,
    title: str,
    introduction: str,
    facts: Mapping[str, str],
    rows: Sequence[ReportRow],
) -> None:
    """Write the page to ``path``, atomically; heatmaps are referred to relative to it.

    Args:
        path: the ``.html`` file.
        title: headline and window title.
        introduction: one paragraph of plain text.
        facts: shown as a table before the slides.
        rows: the slides, in the order shown.
    """
    fact_rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    table = "".join(_table_row(row) for row in rows)
    figures = "".join(_figure(row) for row in rows if row.heatmap is not None)
    body = (
        f"<p>{escape(introduction)}</p>\n"
        f"<table>{fact_rows}</table>\n"
        "<h2>Slides</h2>\n<table><tr><th>slide</th><th>truth</th><th>prediction</th>"
        "<th>probability</th><th>tiles</th><th>seconds</th></tr>"
        f"{table}</table>\n"
        "<h2>Where the answers come from</h2>\n<p>Red speaks for the predicted class, blue against "
        "it; the stronger, the more opaque, and the bar under each picture has the values: a tile's "
        "share in the logit of the class, less its mean share in those of all classes. All "
        "magnifications are in one picture: their values are added up where tiles overlap, a larger "
        "tile's spread evenly over its area.</p>\n"
        f'<div class="slides">{figures}</div>\n'
    )
    write_atomic(path, html_page(title, body))


def _table_row(row: ReportRow) -> str:
    prediction = row.prediction
    wrong = row.truth is not None and row.truth != prediction.label
    tiles = ", ".join(f"{name} {count}" for name, count in prediction.tiles.items())
    return (
        f"<tr><td>{escape(prediction.slide)}</td><td>{escape(row.truth or '')}</td>"
        f"<td{' class=wrong' if wrong else ''}>{escape(prediction.label)}</td>"
        f'<td class="number">{prediction.probabilities[prediction.label]:.3f}</td>'
        f"<td>{escape(tiles)}</td>"
        f'<td class="number">{prediction.seconds["total"]:.2f}</td></tr>\n'
    )


def _figure(row: ReportRow) -> str:
    prediction = row.prediction
    chances = ", ".join(f"{label} {p:.2f}" for label, p in prediction.probabilities.items())
    picture = escape(row.heatmap or "", quote=True)
    truth = f"truth {row.truth}; " if row.truth is not None else ""
    return (
        f'<figure><a href="{picture}"><img src="{picture}" '
        f'alt="Evidence map of {escape(prediction.slide, quote=True)}"></a>'
        f"<figcaption><b>{escape(prediction.slide)}</b>: {escape(truth + chances)}</figcaption>"
        "</figure>\n"
    )


__all__ = ["ReportRow", "write_report"]
