"""Which slides train, select and test, fold by fold; a patient is never on two sides."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.files import write_atomic

from .labels import LabelRow, LabelTable, read_csv, some

_COLUMNS = ("slide", "patient", "label", "fold", "split")
_WORDS = {
    "train": "train",
    "development": "train",
    "val": "val",
    "test": "test",
    "held_out": "test",
}


@dataclass(frozen=True)
class SplitRow:
    """One slide in one fold; ``split`` is train, val or test."""

    slide: str
    patient: str
    label: str
    fold: int
    split: str


def make_folds(
    table: LabelTable, *, folds: int, val_share: float, test_share: float, seed: int
) -> list[SplitRow]:
    """Stratified folds grouped by patient; with ``folds`` 1 a single split by ``test_share``.

    Every slide is in the test part of exactly one of several folds.

    Raises:
        LabelsInvalid: a label has too few patients for the folds.
    """
    rng = np.random.default_rng(seed)
    _refuse_small_labels(table, max(folds, 2))
    if folds == 1:
        parts = _allocate(table.rows, {"rest": 1 - test_share, "test": test_share}, rng)
        tests = [parts["test"]]
    else:
        parts = _allocate(table.rows, {str(k): 1 / folds for k in range(folds)}, rng)
        tests = [parts[str(k)] for k in range(folds)]
    rows: list[SplitRow] = []
    for fold, test in enumerate(tests):
        rest = [row for row in table.rows if row.patient not in test]
        val = _validation_patients(rest, val_share, rng)
        rows += [
            _split_row(row, fold, _part(row.patient, test=test, val=val)) for row in table.rows
        ]
    check_splits(rows, table, str(table.path))
    return rows


def fixed_split(table: LabelTable, *, val_share: float, seed: int) -> list[SplitRow]:
    """The single split of the table's own split column.

    Its words are train, val, test, or development (train) and held_out (test). Without val,
    ``val_share`` of the training patients become validation.

    Raises:
        LabelsInvalid: another word, a patient in two parts, or a part lacks a label.
    """
    unknown = {row.split for row in table.rows} - set(_WORDS)
    if unknown:
        raise LabelsInvalid(
            f"{table.path}: split {some(unknown)} is not known; write one of {', '.join(_WORDS)}."
        )
    rows = [_split_row(row, 0, _WORDS[row.split]) for row in table.rows]
    check_splits(rows, table, str(table.path))
    if not any(row.split == "val" for row in rows):
        training = [row for row in table.rows if _WORDS[row.split] == "train"]
        val = _validation_patients(training, val_share, np.random.default_rng(seed))
        rows = [
            SplitRow(row.slide, row.patient, row.label, 0, "val") if row.patient in val else row
            for row in rows
        ]
        check_splits(rows, table, str(table.path))
    return rows


def read_splits(path: Path, table: LabelTable) -> list[SplitRow]:
    """Read a splits CSV (slide, fold, split; patient and label are taken from the table).

    ``path`` is the file, or a directory that holds ``splits.csv``.

    Raises:
        LabelsInvalid: unreadable; a slide is unknown, doubled in a fold or contradicts the table;
            a patient is in two parts of a fold, or a part lacks a label.
    """
    file = path / "splits.csv" if path.is_dir() else path
    records, columns = read_csv(file)
    missing = [name for name in ("slide", "fold", "split") if name not in columns]
    if missing:
        raise LabelsInvalid(f"{file} has no column {', '.join(missing)}; it needs {_COLUMNS}.")
    rows = []
    for record in records:
        known = table.by_slide.get(record["slide"])
        if known is None:
            raise LabelsInvalid(
                f"{file} names slide {record['slide']!r}, which {table.path} does not; "
                "add its label or remove it from the splits."
            )
        for field in ("patient", "label"):
            if field in record and record[field] != getattr(known, field):
                raise LabelsInvalid(
                    f"{file} gives slide {known.slide!r} the {field} {record[field]!r}, "
                    f"{table.path} says {getattr(known, field)!r}; mend one of them."
                )
        if not record["fold"].isdecimal() or record["split"] not in _WORDS:
            raise LabelsInvalid(
                f"{file}: fold {record['fold']!r}, split {record['split']!r} of slide "
                f"{known.slide!r} make no sense; write a number from 0 and train, val or test."
            )
        rows.append(_split_row(known, int(record["fold"]), _WORDS[record["split"]]))
    check_splits(rows, table, str(file))
    return rows


def splits_text(rows: Sequence[SplitRow]) -> str:
    """The text of ``splits.csv``."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((row.slide, row.patient, row.label, row.fold, row.split) for row in rows)
    return text.getvalue()


def write_splits(path: Path, rows: Sequence[SplitRow]) -> None:
    """Write ``splits.csv``, atomically."""
    write_atomic(path, splits_text(rows).encode())


def fold_numbers(rows: Iterable[SplitRow]) -> list[int]:
    """Numbers of the folds, ascending."""
    return sorted({row.fold for row in rows})


def slides_of(rows: Iterable[SplitRow], fold: int, split: str) -> list[str]:
    """Slides of one part of one fold, in the order of the rows."""
    return [row.slide for row in rows if row.fold == fold and row.split == split]


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


def _split_row(row: LabelRow, fold: int, split: str) -> SplitRow:
    return SplitRow(row.slide, row.patient, row.label, fold, split)


def _part(patient: str, *, test: set[str], val: set[str]) -> str:
    if patient in test:
        return "test"
    return "val" if patient in val else "train"


def _refuse_small_labels(table: LabelTable, needed: int) -> None:
    for label in table.labels:
        patients = {row.patient for row in table.rows if row.label == label}
        if len(patients) < needed:
            raise LabelsInvalid(
                f"{table.path}: label {label!r} has slides of {len(patients)} patients, "
                f"{needed} are needed so that every fold can train and test it; "
                "use fewer folds, add slides, or remove the label."
            )


def _validation_patients(
    rows: Sequence[LabelRow], share: float, rng: np.random.Generator
) -> set[str]:
    if share == 0:
        return set()
    return _allocate(rows, {"train": 1 - share, "val": share}, rng)["val"]


def _allocate(
    rows: Sequence[LabelRow], shares: Mapping[str, float], rng: np.random.Generator
) -> dict[str, set[str]]:
    """Deal patients to parts so that each part comes near its share of every label.

    Largest patients first, equal ones in random order; each goes where it takes most off the
    squared distance to the wanted counts, relative to the size of the label.
    """
    names = sorted({row.label for row in rows})
    counts: dict[str, npt.NDArray[np.float64]] = {}
    for row in rows:
        count = counts.setdefault(row.patient, np.zeros(len(names)))
        count[names.index(row.label)] += 1
    totals = np.sum(list(counts.values()), axis=0)
    wanted = _wanted(totals, list(shares.values()))
    have = np.zeros_like(wanted)
    parts: dict[str, set[str]] = {name: set() for name in shares}
    patients = list(counts)
    shuffled = [patients[i] for i in rng.permutation(len(patients))]
    for patient in sorted(shuffled, key=lambda p: -counts[p].sum()):
        gap = wanted - have
        gain = ((gap**2 - (gap - counts[patient]) ** 2) / totals).sum(axis=1)
        best = int(np.argmax(gain))
        have[best] += counts[patient]
        parts[list(shares)[best]].add(patient)
    return parts


def _wanted(totals: npt.NDArray[np.float64], shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """Slides per part and label; a small part gets one of each label that has at least two."""
    wanted = np.outer(shares, totals)
    largest = int(np.argmax(shares))
    for part in range(len(shares)):
        if part != largest:
            wanted[part] = np.where(totals >= 2, np.maximum(wanted[part], 1.0), wanted[part])
    wanted[largest] = totals - np.delete(wanted, largest, axis=0).sum(axis=0)
    return wanted


__all__ = [
    "SplitRow",
    "check_splits",
    "fixed_split",
    "fold_numbers",
    "make_folds",
    "read_splits",
    "slides_of",
    "splits_text",
    "write_splits",
]
