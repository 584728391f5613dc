"""``cmamil split``: folds for cross-validation, made or taken over from another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmamil_sdk.cli.options import Json
from cmamil_sdk.cli.output import say, say_json, table
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.training.defaults import DEFAULT_FOLDS, DEFAULT_TEST_SHARE, DEFAULT_VAL_SHARE

if TYPE_CHECKING:
    from cmamil_sdk.training.labels import LabelTable
    from cmamil_sdk.training.splits import SplitRow


def run(
    labels: Annotated[Path, typer.Option(help="CSV: slide, label; optionally patient, site.")],
    out: Annotated[Path, typer.Option(help="New folder for the folds.")],
    folds: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"How many (default: {DEFAULT_FOLDS}); of --splits, the first so many."
        ),
    ] = None,
    monte_carlo: Annotated[
        bool, typer.Option("--monte-carlo", help="Draw each fold anew; tests may overlap.")
    ] = False,
    test_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.99,
            help=f"Share for test with --monte-carlo or --folds 1 (default: {DEFAULT_TEST_SHARE}).",
        ),
    ] = None,
    by_site: Annotated[
        bool, typer.Option("--by-site", help="Keep all slides of a site in one part, too.")
    ] = False,
    val: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.99,
            help=f"Share of what is not tested for val (default: {DEFAULT_VAL_SHARE}; of --splits "
            "without val: none).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the lot.")] = 1,
    splits: Annotated[
        Path | None, typer.Option(help="Folds to take over instead, in any form.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Refuse labelled slides without features in this folder.")
    ] = None,
    form: Annotated[
        Literal["cmamil", "clam", "cma-mil"],
        typer.Option(
            "--format", help="splits.csv, CLAM's splits_<f>.csv, or CMA-MIL's fold_<f>_*.csv."
        ),
    ] = "cmamil",
    json: Json = False,
) -> None:
    """Stratified folds, grouped by patient; every slide of a patient is in one part."""
    from cmamil_sdk.training.folds import make_folds
    from cmamil_sdk.training.labels import read_labels
    from cmamil_sdk.training.split_files import write_split_files

    slides = read_labels(labels)
    if features is not None:
        _refuse_missing(features, slides)
    if splits is not None:
        _refuse_idle(monte_carlo=monte_carlo, test_share=test_share, by_site=by_site)
        rows = _taken_over(splits, slides, folds, val, seed)
    else:
        folds = folds or DEFAULT_FOLDS
        if test_share is not None and not monte_carlo and folds > 1:
            raise FieldInvalid(
                f"--test-share has no effect on {folds} folds, each of which tests its own slides; "
                "leave it out, or add --monte-carlo."
            )
        rows = make_folds(
            slides,
            folds=folds,
            val_share=DEFAULT_VAL_SHARE if val is None else val,
            test_share=test_share or DEFAULT_TEST_SHARE,
            seed=seed,
            monte_carlo=monte_carlo,
            by_site=by_site,
        )
    files = write_split_files(out, rows, form)
    counts = _counts(rows, slides.labels)
    if json:
        say_json({"out": str(out), "format": form, "files": files, "parts": counts})
        return
    header = ["fold", "part", "slides", "patients", *slides.labels]
    cells = [[*(part[name] for name in header[:4]), *part["labels"].values()] for part in counts]
    say(table(header, cells))
    say(f"{out}: {', '.join(files)}")


def _refuse_missing(features: Path, slides: LabelTable) -> None:
    from cmamil_sdk.training.layouts.folder import FeatureFolder
    from cmamil_sdk.training.store import refuse_unjoined

    refuse_unjoined(FeatureFolder(features), slides, ignore_unlabelled=True)


def _refuse_idle(**options: object) -> None:
    for name, value in options.items():
        if value:
            raise FieldInvalid(
                f"--{name.replace('_', '-')} has no effect on the folds of --splits; "
                "leave out one of the two."
            )


def _taken_over(
    splits: Path, slides: LabelTable, folds: int | None, val: float | None, seed: int
) -> list[SplitRow]:
    from cmamil_sdk.training.folds import with_validation
    from cmamil_sdk.training.split_files import read_splits
    from cmamil_sdk.training.splits import first_folds, folds_without_val

    rows = read_splits(splits, slides)
    if folds is not None:
        rows = first_folds(rows, folds, str(splits))
    if val is not None and not folds_without_val(rows):
        raise FieldInvalid(
            f"--val has no effect on the folds of {splits}, which have a val part; leave it out."
        )
    return with_validation(rows, slides, val_share=val or 0.0, seed=seed)


def _counts(rows: Sequence[SplitRow], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Slides and patients of every part of every fold, and slides per label."""
    from cmamil_sdk.training.splits import PARTS, fold_numbers

    counts = []
    for fold in fold_numbers(rows):
        for part in PARTS:
            members = [row for row in rows if row.fold == fold and row.split == part]
            per_label = {label: sum(row.label == label for row in members) for label in labels}
            counts.append(
                {
                    "fold": fold,
                    "part": part,
                    "slides": len(members),
                    "patients": len({row.patient for row in members}),
                    "labels": per_label,
                }
            )
    return counts
