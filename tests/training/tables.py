"""Labels tables made from the sizes of patients."""

from __future__ import annotations

from pathlib import Path

from cmamil_sdk.training.labels import LabelRow, LabelTable

LABELS = ("a", "b", "c")


def table_of(sizes: list[int], splits: list[str] | None = None) -> LabelTable:
    """One patient per size with so many slides, labels in turn."""
    rows = [
        LabelRow(f"s{p}_{i}", f"p{p}", LABELS[p % 3], split=splits[p] if splits else "")
        for p, size in enumerate(sizes)
        for i in range(size)
    ]
    return LabelTable(Path("labels.csv"), tuple(rows), has_split=splits is not None)
