"""What the demo found: the table, the metrics, heatmaps and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.cli.output import say, table
from cmamil_sdk.explain import ReportRow, save_heatmap, write_report
from cmamil_sdk.predict import Prediction
from cmamil_sdk.training.bootstrap import Scored, bootstrap_intervals
from cmamil_sdk.training.metrics import macro_auc

_HEATMAP_PX = 512  # no more than the slides' second level, which then need not be averaged
_INTRODUCTION = (
    "Slides were drawn by a program, so the labels are true by construction: benign glands, "
    "abnormal cells inside glands (in situ), and the same cells outside them (invasive). Training "
    "saw none of the slides below, nor any other slide of their patients. The predictions came "
    "over gRPC from the exported bundle."
)
_OWN_SLIDE = (
    "The last slide is your own: a model that has seen nothing but drawings answers for it, which "
    "shows that the path works and means nothing else."
)


@dataclass(frozen=True)
class HeldOut:
    """The held-out slides by id: their row of the labels table, and what the server said."""

    truth: Mapping[str, Mapping[str, str]]
    predictions: Mapping[str, Prediction]


def report_results(
    out: Path,
    held_out: HeldOut,
    *,
    baselines: Mapping[str, float],
    own_slide: Path | None,
    own: Prediction | None,
) -> dict[str, Any]:
    """Print the table, write heatmaps and ``report.html``; returns the metrics for the summary."""
    slides = sorted(held_out.predictions, key=lambda s: (held_out.truth[s]["label"], s))
    heatmaps = out / "heatmaps"
    rows = []
    for slide in slides:
        prediction = held_out.predictions[slide]
        picture = heatmaps / f"{slide}.png"
        save_heatmap(out / "slides" / f"{slide}.svs", picture, prediction, max_px=_HEATMAP_PX)
        rows.append(ReportRow(prediction, held_out.truth[slide]["label"], f"heatmaps/{slide}.png"))
    metrics = _metrics(held_out, slides)
    if own is not None and own_slide is not None:
        save_heatmap(own_slide, heatmaps / f"own-{own.slide}.png", own, max_px=_HEATMAP_PX)
        rows.append(ReportRow(own, None, f"heatmaps/own-{own.slide}.png"))
    say("\n" + _table(rows))
    low, high = metrics["auc_ci95"]
    write_report(
        out / "report.html",
        title="cmamil demo: from slide files to served predictions",
        introduction=_INTRODUCTION if own is None else f"{_INTRODUCTION} {_OWN_SLIDE}",
        facts={
            "macro AUC, held out": f"{metrics['auc']:.3f} (95 % interval {low:.3f} to {high:.3f})",
            "accuracy, held out": f"{metrics['accuracy']:.3f}",
            "slides held out": str(len(slides)),
            **{f"for comparison, AUC of {n}": f"{auc:.3f}" for n, auc in baselines.items()},
        },
        rows=rows,
    )
    return metrics


def _metrics(held_out: HeldOut, slides: list[str]) -> dict[str, Any]:
    labels = list(next(iter(held_out.predictions.values())).probabilities)
    probabilities = np.array(
        [[held_out.predictions[s].probabilities[n] for n in labels] for s in slides]
    )
    truth = np.array([labels.index(held_out.truth[s]["label"]) for s in slides], dtype=np.int64)
    patients = [held_out.truth[s]["patient"] for s in slides]
    interval = bootstrap_intervals([Scored(probabilities, truth, patients)])["auc"]
    low, high = interval or (0.0, 1.0)  # defined in no sample: nothing is known
    return {
        "auc": round(macro_auc(probabilities, truth), 4),
        "auc_ci95": [round(low, 4), round(high, 4)],
        "accuracy": round(float((probabilities.argmax(axis=1) == truth).mean()), 4),
        "slides": [
            {"truth": held_out.truth[s]["label"], **held_out.predictions[s].to_json()}
            for s in slides
        ],
    }


def _table(rows: list[ReportRow]) -> str:
    scales = list(rows[0].prediction.tiles)
    cells = [
        [
            row.prediction.slide,
            row.truth or "unknown",
            row.prediction.label,
            f"{row.prediction.probabilities[row.prediction.label]:.3f}",
            *(row.prediction.tiles[s] for s in scales),
            f"{row.prediction.seconds['total']:.2f}",
        ]
        for row in rows
    ]
    header = ["slide", "truth", "prediction", "probability", *scales, "seconds"]
    return table(header, cells)


__all__ = ["HeldOut", "report_results"]
