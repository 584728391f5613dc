"""Which slides train, select and test, fold by fold; a patient is never on two sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmamil_sdk.errors import ConfigInvalid, LabelsInvalid

from .labels import LabelTable, some

PARTS = ("train", "val", "test")
PART_OF_WORD = {
    "train": "train",
    "development": "train",
    "val": "val",
    "test": "test",
    "held_out": "test",
}
"""What tables call the parts of a fold."""


@dataclass(frozen=True)
class SplitRow:
    """One slide in one fold; ``split`` is train, val or test."""

    slide: str
    patient: str
    label: str
    fold: int
    split: str


def fold_numbers(rows: Iterable[SplitRow]) -> list[int]:
    """Numbers of the folds, ascending."""
    return sorted({row.fold for row in rows})


def slides_of(rows: Iterable[SplitRow], fold: int, split: str) -> list[str]:
    """Slides of one part of one fold, in the order of the rows."""
    return [row.slide for row in rows if row.fold == fold and row.split == split]


def folds_without_val(rows: Iterable[SplitRow]) -> set[int]:
    """Numbers of the folds that have no val part."""
    parts: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        parts[row.fold].add(row.split)
    return {fold for fold, present in parts.items() if "val" not in present}


def first_folds(rows: Sequence[SplitRow], count: int, where: str) -> list[SplitRow]:
    """The rows of the first ``count`` folds.

    Raises:
        ConfigInvalid: there are fewer.
    """
    numbers = fold_numbers(rows)
    if count > len(numbers):
        raise ConfigInvalid(
            f"folds is {count}, and {where} holds {len(numbers)}; leave folds out to use them all."
        )
    return [row for row in rows if row.fold in numbers[:count]]


def check_splits(rows: Sequence[SplitRow], table: LabelTable, where: str) -> None:
    """Refuse splits that leak or that cannot be learned or measured.

    Raises:
        LabelsInvalid: no rows; a slide twice in a fold; a patient in two parts of a fold; a label
            missing from the train or test part of a fold.
    """
    if not rows:
        raise LabelsInvalid(f"{where} holds no slide; fill it, or let folds be made.")
    for fold in fold_numbers(rows):
        members = [row for row in rows if row.fold == fold]
        double = [s for s, n in Counter(row.slide for row in members).items() if n > 1]
        if double:
            raise LabelsInvalid(f"{where}, fold {fold}: {some(double)} stands there twice.")
        parts: dict[str, set[str]] = defaultdict(set)
        for row in members:
            parts[row.patient].add(row.split)
        torn = [patient for patient, splits in parts.items() if len(splits) > 1]
        if torn:
            raise LabelsInvalid(
                f"{where}, fold {fold}: the slides of patient {some(torn)} are in more than one "
                "part; keep all slides of a patient in one."
            )
        for split in ("train", "test"):
            present = {row.label for row in members if row.split == split}
            absent = set(table.labels) - present
            if absent:
                raise LabelsInvalid(
                    f"{where}, fold {fold}: no {split} slide has the label {some(absent)}; "
                    "use fewer folds, add slides, remove the label, or, if the labels have a split "
                    "column, mend or remove that."
                )


__all__ = [
    "PARTS",
    "PART_OF_WORD",
    "SplitRow",
    "check_splits",
    "first_folds",
    "fold_numbers",
    "folds_without_val",
    "slides_of",
]
