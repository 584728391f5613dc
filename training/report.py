"""One HTML page on what was trained and how good it is, with the pictures it shows."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cmamil_sdk.explain import html_page
from cmamil_sdk.files import write_atomic
from cmamil_sdk.wording import counted

from .bootstrap import Int64, Scored
from .metrics import COUNTS
from .plots import calibration_png, confusion_png, roc_png

_MOST_WRONG = 20
_SHORT = {"auc": "AUC", "f1": "F1"}
_ECES = {
    "ece": "ECE after temperature",
    "ece_uncalibrated": "ECE before temperature",
    "coarse_ece": "coarse ECE after temperature",
}
_CONFUSIONS = {"confusion.png": "classes", "coarse_confusion.png": "coarse classes"}
_PER_CLASS = ("precision", "recall", "f1", "auc", "average_precision")


@dataclass(frozen=True)
class Examined:
    """Slides that a model had not seen, with its answers before and after the temperature."""

    name: str
    slides: tuple[str, ...]
    uncalibrated: Scored
    calibrated: Scored


@dataclass(frozen=True)
class Report:
    """What the page says.

    Attributes:
        title: headline and window title.
        introduction: a paragraph of plain text.
        facts: shown as a table under the introduction.
        coarse_labels: names of the coarse classes of a hierarchy.
        settings: options that differ from their defaults.
        labels: names of the classes.
        summary: a document like ``metrics.json``.
        tested: as the folds of ``summary``.
        curves: a PNG by name of its fold.
        next_steps: what to do, and the command that does it.
    """

    title: str
    introduction: str
    facts: Mapping[str, str]
    labels: Sequence[str]
    summary: Mapping[str, Any]
    tested: Sequence[Examined]
    coarse_labels: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, bytes] = field(default_factory=dict)
    next_steps: Sequence[tuple[str, str]] = ()


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.html`` and its pictures to ``folder``.

    These are ``roc.png``, ``confusion.png``, ``calibration.png`` and, with a hierarchy,
    ``coarse_confusion.png``.
    """
    after = [part.calibrated for part in report.tested]
    before = [part.uncalibrated for part in report.tested]
    pictures = {
        "roc.png": roc_png(after, report.labels),
        "confusion.png": confusion_png(_added(report.summary, "confusion"), report.labels),
        "calibration.png": calibration_png(before, after),
    }
    if report.coarse_labels:
        pictures["coarse_confusion.png"] = confusion_png(
            _added(report.summary, "coarse_confusion"), report.coarse_labels
        )
    for name, picture in pictures.items():
        write_atomic(folder / name, picture)
    write_atomic(folder / "report.html", html_page(report.title, _body(report, pictures)))


def _body(report: Report, pictures: Mapping[str, bytes]) -> str:
    spread = "; std is the spread over folds" if len(report.summary["folds"]) > 1 else ""
    parts = [f"<p>{escape(report.introduction)}</p>\n", _pairs(report.facts)]
    if report.settings:
        parts += ["<h2>Settings that differ from the defaults</h2>\n", _pairs(report.settings)]
    parts += [
        "<h2>Metrics</h2>\n",
        _metrics(report.summary),
        "<p>The interval holds 95 % of the values that appear when patients are drawn again, with "
        f"all their slides{spread}.</p>\n",
        "<h2>Class by class</h2>\n",
        _per_class(report.summary, report.labels),
        "<h2>What was taken for what</h2>\n",
        *(
            _plot(pictures[name], f"Confusion of {classes}, in slides; rows are the truth.")
            for name, classes in _CONFUSIONS.items()
            if name in pictures
        ),
        "<h2>ROC curves, each class against the rest</h2>\n",
        _plot(pictures["roc.png"], "Thin: each fold. Bold: their mean."),
        "<h2>Calibration</h2>\n",
        _plot(
            pictures["calibration.png"],
            "Answers of all folds in bins of confidence, larger where there are more; on the dotted "
            "line the confidence is the share of right answers. The ECE (expected calibration error) in "
            "a headline is of all these answers together; those above are of each fold.",
        ),
        "<h2>Wrong answers of most confidence</h2>\n",
        _wrong(report),
    ]
    if report.curves:
        parts.append("<h2>Training</h2>\n")
        parts += [_plot(picture, name) for name, picture in report.curves.items()]
    if report.next_steps:
        parts.append("<h2>What to do next</h2>\n")
        parts += [
            f"<p>{escape(text)}</p>\n<pre>{escape(command)}</pre>\n"
            for text, command in report.next_steps
        ]
    return "".join(parts)


def _added(summary: Mapping[str, Any], name: str) -> Int64:
    """A confusion of slides, added up over the folds."""
    counts: Int64 = np.sum([fold["test"][name] for fold in summary["folds"]], axis=0)
    return counts


def _metrics(summary: Mapping[str, Any]) -> str:
    folds = summary["folds"]
    names = [name for name in summary["mean"] if name not in COUNTS]
    if len(folds) == 1:
        header = ["", "value", "95 % interval"]
        rows = [
            [_spelt(name), _shown(summary["mean"][name]), _interval(summary["ci95"].get(name))]
            for name in names
        ]
    else:
        header = ["", *(f"fold {fold['fold']}" for fold in folds), "mean", "std", "95 % interval"]
        rows = [
            [
                _spelt(name),
                *(_shown(fold["test"].get(name)) for fold in folds),
                _shown(summary["mean"][name]),
                _shown(summary["std"][name]),
                _interval(summary["ci95"].get(name)),
            ]
            for name in names
        ]
    rows += [[name, *(str(fold["test"][name]) for fold in folds)] for name in COUNTS]
    return _table(header, rows)


def _per_class(summary: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Mean over the folds that know each value."""
    tests = [fold["test"] for fold in summary["folds"]]
    rows = []
    for number, label in enumerate(labels):
        values = [
            [
                t[f"{name}_per_class"][label]
                for t in tests
                if t[f"{name}_per_class"][label] is not None
            ]
            for name in _PER_CLASS
        ]
        slides = sum(sum(test["confusion"][number]) for test in tests)
        means = (_shown(float(np.mean(known)) if known else None) for known in values)
        rows.append([label, str(slides), *means])
    return _table(["label", "slides", *map(_spelt, _PER_CLASS)], rows)


def _wrong(report: Report) -> str:
    found = []
    for part in report.tested:
        probabilities, truth = part.calibrated.probabilities, part.calibrated.labels
        answers = probabilities.argmax(axis=1)
        for row in np.flatnonzero(answers != truth):
            found.append(
                (
                    float(probabilities[row, answers[row]]),
                    part.slides[row],
                    part.name,
                    report.labels[truth[row]],
                    report.labels[answers[row]],
                    float(probabilities[row, truth[row]]),
                )
            )
    if not found:
        return "<p>None: every slide was answered rightly.</p>\n"
    found.sort(key=lambda line: (-line[0], line[1]))
    n_slides = sum(len(part.slides) for part in report.tested)
    shown = f", the first {_MOST_WRONG} here" if len(found) > _MOST_WRONG else ""
    rows = [
        [slide, fold, truth, answer, _shown(confidence), _shown(true_share)]
        for confidence, slide, fold, truth, answer, true_share in found[:_MOST_WRONG]
    ]
    header = ["slide", "tested in", "truth", "answer", "its probability", "that of the truth"]
    verb = "is" if len(found) == 1 else "are"
    wrong = f"{len(found)} of {counted(n_slides, 'answer')} {verb} wrong{shown}"
    return f"<p>{wrong}.</p>\n" + _table(header, rows, text_columns=4)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}>{escape(value)}</{tag}>"
            if position < text_columns
            else f'<{tag} class="number">{escape(value)}</{tag}>'
            for position, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{cells("th", header)}</tr>\n{body}</table></div>\n'


def _pairs(values: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>\n" for k, v in values.items())
    return f"<table>{''.join(rows)}</table>\n"


def _plot(picture: bytes, caption: str) -> str:
    data, text = base64.b64encode(picture).decode(), escape(caption, quote=True)
    return (
        f'<figure class="plot"><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )


def _spelt(metric: str) -> str:
    """A metric's name for people."""
    if metric in _ECES:
        return _ECES[metric]
    words = [_SHORT.get(word, word) for word in metric.split("_")]
    return " ".join(words)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


__all__ = ["Examined", "Report", "write_report"]
