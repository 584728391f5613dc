"""Folds as files: our ``splits.csv``, CLAM's ``splits_<f>.csv``, CMA-MIL's ``fold_<f>_*.csv``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import Literal

from cmamil_sdk.errors import LabelsInvalid, OutputExists
from cmamil_sdk.files import CsvRow, csv_text, read_csv, write_atomic

from .labels import LabelRow, LabelTable
from .splits import PART_OF_WORD, PARTS, SplitRow, check_splits, fold_numbers, slides_of

SplitFormat = Literal["cmamil", "clam", "cma-mil"]
_COLUMNS = ("slide", "patient", "label", "fold", "split")
_OURS = "splits.csv"
_CLAM = re.compile(r"splits_(\d+)\.csv")
_CMA = re.compile(r"fold_(\d+)_(?:training|test)\.csv")
_CMA_FILES = {"training": ("train", "val"), "test": ("test",)}
_FORMS = (
    "splits.csv, splits_<fold>.csv (CLAM), or fold_<fold>_training.csv and fold_<fold>_test.csv"
)


def read_splits(path: Path, table: LabelTable) -> list[SplitRow]:
    """Read folds of any form; patients and labels are those of the table.

    ``path`` is a ``splits.csv``, or a directory that holds files of one form.

    Raises:
        LabelsInvalid: unreadable; a slide is unknown, doubled in a fold or contradicts the table;
            a patient is in two parts of a fold, or a part lacks a label.
    """
    rows = _read_directory(path, table) if path.is_dir() else _read_ours(path, table)
    check_splits(rows, table, str(path))
    return rows


def splits_text(rows: Sequence[SplitRow]) -> str:
    """The text of ``splits.csv``."""
    lines = ((row.slide, row.patient, row.label, row.fold, row.split) for row in rows)
    return csv_text(_COLUMNS, lines)


def write_splits(path: Path, rows: Sequence[SplitRow]) -> None:
    """Write ``splits.csv``, atomically."""
    write_atomic(path, splits_text(rows).encode())


def write_split_files(folder: Path, rows: Sequence[SplitRow], form: SplitFormat) -> list[str]:
    """Write folds in one form into a new folder, whole or not at all; the names of the files.

    CLAM counts folds from 0 and CMA-MIL from 1, whatever their numbers in ``rows``. All forms hold
    all three parts; CMA-MIL's have a column ``split``, as its TCGA folds do, if there is a val part.

    Raises:
        OutputExists: the folder holds something already.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputExists(f"{folder} exists and is not an empty folder; name a new one.")
    files = _WRITERS[form](rows)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, text in files.items():
            write_atomic(temporary / name, text.encode())
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(files)


def _read_directory(folder: Path, table: LabelTable) -> list[SplitRow]:
    names = {path.name for path in folder.iterdir()}
    clam = sorted(int(match[1]) for name in names if (match := _CLAM.fullmatch(name)))
    cma = sorted({int(match[1]) for name in names if (match := _CMA.fullmatch(name))})
    ours = _OURS in names
    if [ours, bool(clam), bool(cma)].count(True) != 1:
        found = "folds of several forms" if ours or clam else "no folds"
        raise LabelsInvalid(f"{folder} holds {found}; give it files of one form: {_FORMS}.")
    if ours:
        return _read_ours(folder / _OURS, table)
    if clam:
        return [row for fold in clam for row in _read_clam(folder, fold, table)]
    return _read_cma(folder, cma, table)


def _read_ours(file: Path, table: LabelTable) -> list[SplitRow]:
    records = _records(file, ("slide", "fold", "split"))
    rows = []
    for record in records:
        known = _known(record["slide"], file, table)
        for field in ("patient", "label"):
            if field in record and record[field] != getattr(known, field):
                raise LabelsInvalid(
                    f"{file} gives slide {known.slide!r} the {field} {record[field]!r}, "
                    f"{table.path} says {getattr(known, field)!r}; mend one of them."
                )
        if not record["fold"].isdecimal() or record["split"] not in PART_OF_WORD:
            raise LabelsInvalid(
                f"{file}: fold {record['fold']!r}, split {record['split']!r} of slide "
                f"{known.slide!r} make no sense; write a number from 0 and train, val or test."
            )
        rows.append(_row(known, int(record["fold"]), PART_OF_WORD[record["split"]]))
    return rows


def _read_clam(folder: Path, fold: int, table: LabelTable) -> list[SplitRow]:
    """A column of slides for each part, shorter ones padded."""
    file = folder / f"splits_{fold}.csv"
    records = _records(file, ("train", "test"))
    return [
        _row(_known(record[part], file, table), fold, part)
        for part in PARTS
        for record in records
        if record.get(part)
    ]


def _read_cma(folder: Path, folds: Sequence[int], table: LabelTable) -> list[SplitRow]:
    """Two files a fold; their classes are numbers whose meaning only the table knows."""
    rows: list[SplitRow] = []
    label_of: dict[str, tuple[str, str]] = {}
    for fold in folds:
        for kind, parts in _CMA_FILES.items():
            file = folder / f"fold_{fold}_{kind}.csv"
            for record in _records(file, ("class", "filename")):
                known = _known(record["filename"], file, table)
                _refuse_other_class(record["class"], known, file, label_of)
                part = record.get("split", parts[0])
                if part not in parts:
                    raise LabelsInvalid(
                        f"{file}: split {part!r} of slide {known.slide!r} does not belong here; "
                        f"write {' or '.join(parts)}."
                    )
                rows.append(_row(known, fold, part))
    return rows


def _refuse_other_class(
    number: str, row: LabelRow, file: Path, label_of: dict[str, tuple[str, str]]
) -> None:
    """One class, one label, over all files; the first slide of a class decides."""
    label, first = label_of.setdefault(number, (row.label, row.slide))
    twin = next((n for n, (name, _) in label_of.items() if name == row.label), number)
    if label != row.label:
        raise LabelsInvalid(
            f"{file}: slide {row.slide!r} of class {number} has the label {row.label!r}, slide "
            f"{first!r} of the same class has {label!r}; mend the class or the label."
        )
    if twin != number:
        raise LabelsInvalid(
            f"{file}: slide {row.slide!r} of class {number} has the label {row.label!r}, which "
            f"slide {label_of[twin][1]!r} of class {twin} has too; mend the class or the label."
        )


def _records(file: Path, needed: Sequence[str]) -> list[CsvRow]:
    records, columns = read_csv(file, error=LabelsInvalid)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise LabelsInvalid(
            f"{file} has no column {', '.join(missing)}; it needs {', '.join(needed)}."
        )
    return records


def _known(name: str, file: Path, table: LabelTable) -> LabelRow:
    """The table's row of a slide, which may be named with the suffix of its file."""
    known = table.by_slide.get(name) or table.by_slide.get(PurePath(name).stem)
    if known is None:
        raise LabelsInvalid(
            f"{file} names slide {name!r}, which {table.path} does not; "
            "add its label or remove it from the splits."
        )
    return known


def _row(row: LabelRow, fold: int, part: str) -> SplitRow:
    return SplitRow(row.slide, row.patient, row.label, fold, part)


def _ours_files(rows: Sequence[SplitRow]) -> dict[str, str]:
    return {_OURS: splits_text(rows)}


def _clam_files(rows: Sequence[SplitRow]) -> dict[str, str]:
    files = {}
    for number, fold in enumerate(fold_numbers(rows)):
        columns = [slides_of(rows, fold, part) for part in PARTS]
        lines = [(i, *slides) for i, slides in enumerate(zip_longest(*columns, fillvalue=""))]
        files[f"splits_{number}.csv"] = csv_text(("", *PARTS), lines)
    return files


def _cma_files(rows: Sequence[SplitRow]) -> dict[str, str]:
    files = {}
    has_val = any(row.split == "val" for row in rows)
    header = ("class", "filename", "split") if has_val else ("class", "filename")
    for number, fold in enumerate(fold_numbers(rows), start=1):
        for kind, parts in _CMA_FILES.items():
            members = [row for row in rows if row.fold == fold and row.split in parts]
            lines = ((row.label, row.slide, row.split)[: len(header)] for row in members)
            files[f"fold_{number}_{kind}.csv"] = csv_text(header, lines)
    return files


_WRITERS = {"cmamil": _ours_files, "clam": _clam_files, "cma-mil": _cma_files}


__all__ = ["SplitFormat", "read_splits", "splits_text", "write_split_files", "write_splits"]
