"""The labels table: which slide is whose, and what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.files import read_csv
from cmamil_sdk.wording import counted

_COLUMNS = {
    "slide": ("slide", "slide_id"),
    "patient": ("patient", "patient_id", "case_id"),
    "label": ("label",),
    "site": ("site",),
    "split": ("split",),
}
_SHOWN = 5


@dataclass(frozen=True)
class LabelRow:
    """One slide of the labels table; ``site`` and ``split`` are "" where there is no such column.

    ``patient`` is the slide's own id where the table has no patient column.
    """

    slide: str
    patient: str
    label: str
    site: str = ""
    split: str = ""


@dataclass(frozen=True)
class LabelTable:
    """All labelled slides, each once, in the order of the file.

    Attributes:
        path: where it was read, for messages.
        rows: one per slide.
        has_split: whether the file has a split column.
        has_patients: whether it says whose the slides are.
        known_labels: of a model that is to answer; None: the labels are those of the rows.
    """

    path: Path
    rows: tuple[LabelRow, ...]
    has_split: bool
    known_labels: tuple[str, ...] | None = None
    has_patients: bool = False

    @cached_property
    def by_slide(self) -> dict[str, LabelRow]:
        """Rows by slide id."""
        return {row.slide: row for row in self.rows}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label names, sorted unless they are a model's; a class is its position here."""
        return self.known_labels or tuple(sorted({row.label for row in self.rows}))

    def class_of(self, slide: str) -> int:
        """Class number of a slide's label."""
        return self.labels.index(self.by_slide[slide].label)


def read_labels(path: Path, *, known_labels: tuple[str, ...] | None = None) -> LabelTable:
    """Read a labels CSV with the columns slide, label and optionally patient, site, split.

    ``slide_id``, ``patient_id`` and ``case_id`` are known as well; other columns are not read.
    ``known_labels`` are those of a model that is to answer, whose order makes the classes.

    Raises:
        LabelsInvalid: unreadable; a column or value is missing; a slide is named twice; fewer than
            two labels, or one that is not among ``known_labels``.
    """
    records, columns = read_csv(path, error=LabelsInvalid)
    found = {
        field: next((name for name in names if name in columns), None)
        for field, names in _COLUMNS.items()
    }
    for field in ("slide", "label"):
        if found[field] is None:
            raise LabelsInvalid(
                f"{path} has no column {field!r} (it has {', '.join(columns) or 'none'}); "
                "name the columns slide, label and, if known, patient."
            )
    rows = []
    for record in records:
        values = {field: record[name] for field, name in found.items() if name is not None}
        for field in ("slide", "label", "patient", "split"):
            if field in values and not values[field]:
                raise LabelsInvalid(
                    f"{path}, line {record.line}: the {field} of slide {values['slide']!r} is empty; "
                    "fill it in or remove the line."
                )
        rows.append(LabelRow(**({"patient": values["slide"]} | values)))
    return checked_table(
        path,
        rows,
        has_split=found["split"] is not None,
        has_patients=found["patient"] is not None,
        known_labels=known_labels,
    )


def checked_table(
    path: Path,
    rows: Sequence[LabelRow],
    *,
    has_split: bool,
    has_patients: bool,
    known_labels: tuple[str, ...] | None = None,
) -> LabelTable:
    """The table of ``rows``.

    Raises:
        LabelsInvalid: a slide is named twice; there are fewer than two labels, or, where
            ``known_labels`` are given, no slide or another label.
    """
    _refuse_doubles(path, (row.slide for row in rows))
    table = LabelTable(path, tuple(rows), has_split, known_labels, has_patients)
    if known_labels is not None:
        _refuse_unknown(table)
        return table
    if len(table.labels) < 2:
        raise LabelsInvalid(
            f"{path} holds {counted(len(rows), 'slide')} with {counted(len(table.labels), 'label')}; "
            "a classifier needs at least two."
        )
    return table


def some(names: Iterable[str]) -> str:
    """The first few of sorted ``names``, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def _refuse_unknown(table: LabelTable) -> None:
    if not table.rows:
        raise LabelsInvalid(f"{table.path} names no slide; fill it in.")
    unknown = {row.label for row in table.rows} - set(table.labels)
    if unknown:
        raise LabelsInvalid(
            f"{table.path} has the labels {some(unknown)}, which the model does not know (it knows "
            f"{', '.join(table.labels)}); rename or remove these slides."
        )


def _refuse_doubles(path: Path, slides: Iterable[str]) -> None:
    doubles = [slide for slide, count in Counter(slides).items() if count > 1]
    if doubles:
        raise LabelsInvalid(f"{path} names {some(doubles)} more than once; keep one line for each.")


__all__ = ["LabelRow", "LabelTable", "checked_table", "read_labels", "some"]
