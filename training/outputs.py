"""What a training and an evaluation leave for people: predictions, pictures, a page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmamil_sdk import __version__
from cmamil_sdk.bundle.manifest import NAME_PATTERN
from cmamil_sdk.files import write_json
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.runs import fold_directory
from cmamil_sdk.wording import counted

from .config import TrainConfig
from .evaluation import Evaluation
from .labels import LabelTable
from .report import Examined, Report, write_report
from .scoring import FoldAnswers, scored, write_predictions

CURVES = "curves.png"


def write_run_report(
    run: Path,
    config: TrainConfig,
    table: LabelTable,
    folds: Mapping[int, FoldAnswers],
    summary: Mapping[str, Any],
    *,
    hierarchy: Hierarchy | None,
    facts: Mapping[str, str],
    exportable: bool,
) -> None:
    """Write a run's pictures and ``report.html``.

    Args:
        run: its directory.
        config: how it was trained.
        table: the labels.
        folds: answers by fold.
        summary: the document of ``metrics.json``.
        hierarchy: of a model with coarse labels.
        facts: on the data.
        exportable: whether the features' encoder is known, without which there is no bundle.
    """
    n_folds = len(folds)
    once = "fold" if n_folds == 1 else "folds, each with slides of its own to test on"
    write_report(
        run,
        Report(
            title=f"Training of {config.model}: {run.resolve().name}",
            introduction=(
                f"{config.model} was trained in {n_folds} {once}. The best epoch was chosen and "
                "the temperature set on validation slides. All figures are of test slides, which "
                "had no part in either."
            ),
            facts={
                **facts,
                **_coarse_answer(summary),
                "slides per step": _distinct(fold["slides_per_step"] for fold in summary["folds"]),
                "training time": f"{summary['seconds']:.0f} s",
                **_made(),
            },
            settings=changed_settings(config),
            labels=table.labels,
            coarse_labels=() if hierarchy is None else hierarchy.coarse_labels,
            summary=summary,
            tested=_tested(table, folds),
            curves={
                f"Fold {fold}": (fold_directory(run, fold) / CURVES).read_bytes() for fold in folds
            },
            next_steps=_next_steps(run) if exportable else (),
        ),
    )


def write_evaluation(out: Path, evaluation: Evaluation) -> None:
    """Write ``predictions.csv``, ``metrics.json``, the pictures and ``report.html`` to ``out``."""
    n_slides = sum(len(fold.test.slides) for fold in evaluation.folds.values())
    table, folds, hierarchy = evaluation.table, evaluation.folds, evaluation.hierarchy
    write_predictions(out / "predictions.csv", table, folds, hierarchy)
    write_report(
        out,
        Report(
            title=f"Evaluation: {evaluation.model}",
            introduction=(
                f"{evaluation.model} answered for {counted(n_slides, 'slide')}, at the temperature "
                f"that its validation slides had set. {evaluation.caveat}"
            ),
            facts={**evaluation.facts, **_coarse_answer(evaluation.summary), **_made()},
            labels=table.labels,
            coarse_labels=() if hierarchy is None else hierarchy.coarse_labels,
            summary=evaluation.summary,
            tested=_tested(table, folds),
        ),
    )
    write_json(out / "metrics.json", evaluation.summary)


def _tested(table: LabelTable, folds: Mapping[int, FoldAnswers]) -> list[Examined]:
    return [
        Examined(
            name=f"fold {number}" if len(folds) > 1 else "test",
            slides=fold.test.slides,
            uncalibrated=scored(fold.test, table, 1.0),
            calibrated=scored(fold.test, table, fold.temperature),
        )
        for number, fold in folds.items()
    ]


def _coarse_answer(summary: Mapping[str, Any]) -> dict[str, str]:
    """Where a model's coarse answer comes from."""
    origins = {
        "own": "the model's own",
        "summed": "sums of the labels' probabilities, because no coarse loss trained the model's own",
    }
    return (
        {"coarse answer": origins[summary["coarse_answer"]]} if "coarse_answer" in summary else {}
    )


def _distinct(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))


def _made() -> dict[str, str]:
    return {"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, cmamil-sdk {__version__}"}


def _next_steps(run: Path) -> list[tuple[str, str]]:
    """What follows a training, with the commands that do it."""
    name = run.resolve().name
    name = name if re.fullmatch(NAME_PATTERN, name) else "model"
    here = shlex.quote(str(run))
    return [
        (
            "Export the fold of best validation AUC, with its encoder, as a bundle:",
            f"cmamil export --run {here} --fold best --name {name} --out bundles",
        ),
        (
            "Score the bundle on labelled slides that the training had not seen:",
            f"cmamil evaluate --bundle bundles/{name}/1 --features FOLDER --labels CSV --out scores",
        ),
        (
            "Predict a slide, or serve the bundle over gRPC:",
            f"cmamil predict SLIDE --bundle bundles/{name}/1 --heatmap --out predictions\n"
            f"cmamil serve --bundles bundles/{name}/1 --slides-root SLIDES",
        ),
    ]


def changed_settings(config: TrainConfig) -> dict[str, str]:
    """The fields whose values are not the defaults of ``config.model``, as text."""
    needed = {"model": config.model, "hierarchy": config.hierarchy}
    given = {name: value for name, value in needed.items() if value is not None}
    defaults = TrainConfig.model_validate(given).model_dump() | {"hierarchy": None}
    return {
        name: _as_text(value)
        for name, value in config.model_dump().items()
        if value != defaults[name]
    }


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


__all__ = ["CURVES", "changed_settings", "write_evaluation", "write_run_report"]
