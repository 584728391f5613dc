"""Pictures of a training and of its answers, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .bootstrap import CALIBRATION_BINS, Float64, Int64, Scored
from .metrics import calibration_error, class_auc
from .torchmetrics_import import tm

_DPI = 110
_BLUE, _RED, _GREY = "#1f5fa8", "#b3402e", "#8a8a8a"
_GRID = np.linspace(0.0, 1.0, 201)
_COLUMNS = 4
_MOST_NUMBERED_CLASSES = 12


def curves_png(history: Sequence[Mapping[str, float]], best_epoch: int) -> bytes:
    """Loss, validation AUC (if there is any) and learning rate over the epochs of one fold."""
    epochs = [row["epoch"] for row in history]
    panels: list[tuple[str, list[tuple[str, str]]]] = [("loss", [("train_loss", "training")])]
    if "val_auc" in history[0]:
        panels[0][1].append(("val_loss", "validation"))
        panels.append(("validation AUC", [("val_auc", "")]))
    panels.append(("learning rate", [("lr", "")]))
    figure = Figure(figsize=(3.6 * len(panels), 2.8), layout="constrained")
    for axes, (title, lines) in zip(_axes(figure, 1, len(panels)), panels, strict=True):
        for (name, label), colour in zip(lines, (_BLUE, _RED), strict=False):
            values = [row[name] for row in history]
            axes.plot(epochs, values, color=colour, label=label, marker="." * (len(epochs) < 30))
        axes.axvline(best_epoch, color=_GREY, linestyle=":", label=f"kept epoch, {best_epoch}")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if title == "learning rate":
            axes.set_ylim(0.0, 1.1 * max(row["lr"] for row in history))
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def roc_png(parts: Sequence[Scored], names: Sequence[str]) -> bytes:
    """One-vs-rest ROC curves: a panel per class, each fold thin, their mean bold."""
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.1 * columns, 3.4 * rows), layout="constrained")
    panels = _axes(figure, rows, columns)
    aucs = np.stack([class_auc(part.probabilities, part.labels) for part in parts])
    for number, (axes, name) in enumerate(zip(panels, names, strict=False)):
        known = [part for part, auc in zip(parts, aucs[:, number], strict=True) if np.isfinite(auc)]
        curves = [_roc(part.probabilities[:, number], part.labels == number) for part in known]
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
        for false_share, true_share in curves:
            axes.plot(false_share, true_share, color=_BLUE, linewidth=0.7, alpha=0.5)
        if curves:
            mean = np.mean([np.interp(_GRID, *curve) for curve in curves], axis=0)
            axes.plot(np.r_[0, _GRID], np.r_[0, mean], color=_BLUE, linewidth=2.2)
        axes.set_title(_roc_title(_plain(name), aucs[:, number]), fontsize=10)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return _png(figure)


def confusion_png(confusion: Int64, names: Sequence[str]) -> bytes:
    """Numbers of slides ``[C, C]``, rows truth, columns prediction, shaded by share of the row."""
    edge = max(3.2, 0.62 * len(names) + 1.6)
    figure = Figure(figsize=(edge + 0.8, edge), layout="constrained")
    (axes,) = _axes(figure, 1, 1)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.where(totals > 0, totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if len(names) <= _MOST_NUMBERED_CLASSES:
        for row, column in np.ndindex(*confusion.shape):
            colour = "white" if shares[row, column] > 0.5 else "#1c1c1c"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", c=colour)
    places = np.arange(len(names))
    shown = [_plain(name) for name in names]
    axes.set_xticks(places, shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, shown)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _png(figure)


def calibration_png(before: Sequence[Scored], after: Sequence[Scored]) -> bytes:
    """How often answers of a confidence are right, before and after the temperature, folds pooled."""
    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    panels = _axes(figure, 1, 2)
    for axes, title, parts in zip(panels, ("before", "after"), (before, after), strict=True):
        probabilities = np.concatenate([part.probabilities for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        top = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == labels
        bins = np.minimum((top * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        seen = counts > 0
        confidence = np.bincount(bins, top, CALIBRATION_BINS)[seen] / counts[seen]
        accuracy = np.bincount(bins, right, CALIBRATION_BINS)[seen] / counts[seen]
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
        axes.scatter(
            confidence, accuracy, s=14 + 260 * counts[seen] / len(top), color=_BLUE, alpha=0.7
        )
        error = calibration_error(probabilities, labels)
        axes.set_title(f"{title} temperature: ECE {error:.3f}", fontsize=10)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share answered rightly")
        axes.set_xlim(0, 1.03)
        axes.set_ylim(-0.03, 1.05)
    return _png(figure)


def _roc(scores: Float64, positive: Any) -> tuple[Float64, Float64]:
    """False and true positive shares, ascending."""
    false_share, true_share, _ = tm.binary_roc(
        torch.from_numpy(np.ascontiguousarray(scores)), torch.from_numpy(positive).long()
    )
    return false_share.double().numpy(), true_share.double().numpy()


def _plain(name: str) -> str:
    """A label as it is spelt: matplotlib takes what stands between dollar signs for formulas."""
    return name.replace("$", r"\$")


def _roc_title(name: str, aucs: Float64) -> str:
    known = aucs[np.isfinite(aucs)]
    if not known.size:
        return f"{name}\nno AUC: a class is absent"
    spread = f" ± {known.std():.3f}" if known.size > 1 else ""
    return f"{name}\nAUC {known.mean():.3f}{spread}"


def _axes(figure: Figure, rows: int, columns: int) -> list[Axes]:
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return panels


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


__all__ = ["calibration_png", "confusion_png", "curves_png", "roc_png"]
