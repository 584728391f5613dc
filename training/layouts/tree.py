"""CMA-MIL's trees: ``<root of a scale>/<fold>/{train,val,test}/<class>/<slide>.npy``.

Classes, folds and parts come from the folders. A tree without folds, ``<root>/<class>/<slide>.npy``, is
what feature extraction writes. The scales are joined by slide id, never by order.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.errors import FeatureFileInvalid, LabelsInvalid, ScaleMismatch
from cmamil_sdk.files import sha256_of_file

from ..labels import LabelRow, LabelTable, checked_table, some
from ..splits import SplitRow
from .arrays import SUFFIXES, read_array
from .base import Origin, SlideFeatures
from .folder import files_by_slide

_PARTS = ("train", "val", "test")
_FOLD = re.compile(r"(?:fold_?)?(\d+)")
_Key = tuple[int, str]


@dataclass(frozen=True)
class _Entry:
    """One file of the tree: where it stands in its fold; the part is empty in a tree without folds."""

    part: str
    label: str
    path: Path


class ScaleTrees:
    """One tree per scale, joined.

    Args:
        roots: scale name -> root, coarse to fine.
        scales: those to read; None: all.

    Raises:
        ScaleMismatch: a wanted scale has no root.
        FeatureFileInvalid: a root is no such tree, or the copies of a slide in two folds differ.
        LabelsInvalid: a slide is missing at a scale, doubled in a fold, or in another class or part
            at another scale or of another class in another fold.
    """

    def __init__(self, roots: Mapping[str, Path], scales: tuple[str, ...] | None = None) -> None:
        missing = [name for name in scales or () if name not in roots]
        if missing:
            raise ScaleMismatch(
                f"There is no data root for scale {some(missing)} (there is {', '.join(roots)}); "
                "name it, or choose among these scales."
            )
        self._roots = {name: root for name, root in roots.items() if name in (scales or roots)}
        trees = {name: _scan(root) for name, root in self._roots.items()}
        _refuse_disagreement(trees)
        self._entries = next(iter(trees.values()))
        self._labels = _labels_of(self._entries, self.place)
        self._files = _files_by_slide_and_scale(trees)

    @property
    def place(self) -> Path:
        """The root of the coarsest scale."""
        return next(iter(self._roots.values()))

    @property
    def slides(self) -> Collection[str]:
        """File names without suffix, over all folds."""
        return self._labels.keys()

    @property
    def table(self) -> LabelTable:
        """The labels that the class folders give; each slide counts as a patient of its own."""
        rows = [LabelRow(slide, slide, label) for slide, label in self._labels.items()]
        return checked_table(self.place, rows, has_split=False, has_patients=False)

    def check_labels(self, table: LabelTable) -> None:
        """Refuse a table, read for its patients, that does not say what the folders say.

        Raises:
            LabelsInvalid: it lacks a slide, or gives one another label.
        """
        for slide, label in self._labels.items():
            row = table.by_slide.get(slide)
            if row is None:
                raise LabelsInvalid(
                    f"{table.path} does not name {slide}, which {self.place} holds; add its line."
                )
            if row.label != label:
                raise LabelsInvalid(
                    f"{table.path} gives slide {slide!r} the label {row.label!r}, and it stands in "
                    f"the folder {label!r} of {self.place}; mend one of them."
                )

    def rows(self, table: LabelTable) -> list[SplitRow]:
        """The folds, numbered as their folders, with the patients of ``table``."""
        return [
            SplitRow(slide, table.by_slide[slide].patient, entry.label, fold, entry.part)
            for (fold, slide), entry in self._entries.items()
        ]

    @property
    def has_folds(self) -> bool:
        """Whether the folders say folds and parts."""
        return any(entry.part for entry in self._entries.values())

    def file(self, slide: str) -> Path:
        """The file of a slide at the coarsest scale, in its first fold."""
        return next(iter(self._files[slide].values()))

    def read(self, slide: str) -> SlideFeatures:
        """Read and check one slide; see :class:`~cmamil_sdk.training.layouts.base.Layout`."""
        features = {name: read_array(path, name) for name, path in self._files[slide].items()}
        widths = {name: tiles.shape[1] for name, tiles in features.items()}
        if len(set(widths.values())) > 1:
            shown = ", ".join(f"{width} at {name}" for name, width in widths.items())
            raise FeatureFileInvalid(
                f"{self.file(slide)}: the features of this slide are {shown} wide; "
                "extract all scales with one encoder."
            )
        return SlideFeatures(features, {}, parents_known=False, origin=Origin.unknown(features))

    def fingerprint(self, slide: str) -> str:
        """Hashes of the slide's files."""
        return " ".join(sha256_of_file(path) for path in self._files[slide].values())


def _scan(root: Path) -> dict[_Key, _Entry]:
    """All files of one scale's tree by fold and slide."""
    if _is_without_folds(root):
        return _scan_classes(_folders(root))
    entries: dict[_Key, _Entry] = {}
    for fold, folder in _folds(root).items():
        for part in _folders(folder):
            if part.name not in _PARTS:
                raise FeatureFileInvalid(
                    f"{part} is no part of a fold; name it {', '.join(_PARTS)}, or remove it."
                )
            for label in _folders(part):
                _add_files(entries, fold, part.name, label)
    if not entries:
        raise FeatureFileInvalid(
            f"{root} holds no features as <fold>/train/<class>/<slide>.npy or <class>/<slide>.npy "
            f"({', '.join(SUFFIXES)} are read, pickles are not); name the root of one scale's tree."
        )
    return entries


def _is_without_folds(root: Path) -> bool:
    """Whether folders right below ``root`` hold features, and none holds parts of a fold."""
    folders = _folders(root)
    has_parts = any((folder / part).is_dir() for folder in folders for part in _PARTS)
    return not has_parts and any(files_by_slide(folder) for folder in folders)


def _scan_classes(classes: list[Path]) -> dict[_Key, _Entry]:
    """All files of a tree without folds, as one fold without parts."""
    entries: dict[_Key, _Entry] = {}
    for label in classes:
        _add_files(entries, 0, "", label)
    return entries


def _add_files(entries: dict[_Key, _Entry], fold: int, part: str, label: Path) -> None:
    """Enter the files of a folder of a class."""
    for slide, path in files_by_slide(label).items():
        known = entries.get((fold, slide))
        if known is not None:
            within = "one fold" if part else "one tree"
            raise LabelsInvalid(
                f"{path} and {known.path} are one slide in {within}; remove one of them, or rename it "
                "if they are two slides."
            )
        entries[fold, slide] = _Entry(part, label.name, path)


def _folds(root: Path) -> dict[int, Path]:
    """Folders of folds by number, ascending."""
    found: dict[int, Path] = {}
    for folder in _folders(root):
        number = _FOLD.fullmatch(folder.name)
        if number is None:
            raise FeatureFileInvalid(
                f"{folder} is no fold; folders under {root} are named 1, 2, ... and hold "
                f"{', '.join(_PARTS)}."
            )
        fold = int(number[1])
        if fold in found:
            raise FeatureFileInvalid(f"{found[fold]} and {folder} are both fold {fold}; keep one.")
        found[fold] = folder
    return dict(sorted(found.items()))


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir())


def _refuse_disagreement(trees: Mapping[str, Mapping[_Key, _Entry]]) -> None:
    """Every slide of every fold must stand in the same part and class at all scales."""
    (first, entries), *others = trees.items()
    for name, tree in others:
        for one, have, other, lack in ((first, entries, name, tree), (name, tree, first, entries)):
            missing = sorted(have.keys() - lack.keys())
            if missing:
                raise LabelsInvalid(
                    f"{_shown(missing[0], have)} is there at {one} ({have[missing[0]].path}) "
                    f"and missing at {other}{_more(len(missing))}; extract it at every scale, or "
                    "remove it from all."
                )
        for key, entry in entries.items():
            twin = tree[key]
            if (twin.part, twin.label) != (entry.part, entry.label):
                raise LabelsInvalid(
                    f"{_shown(key, entries)} is {Path(entry.part, entry.label)} at {first} and "
                    f"{Path(twin.part, twin.label)} at {name}; move one of the files."
                )


def _shown(key: _Key, entries: Mapping[_Key, _Entry]) -> str:
    fold, slide = key
    return f"Slide {slide!r} of fold {fold}" if entries[key].part else f"Slide {slide!r}"


def _more(n_missing: int) -> str:
    return f", like {n_missing - 1} more" if n_missing > 1 else ""


def _labels_of(entries: Mapping[_Key, _Entry], root: Path) -> dict[str, str]:
    """Class of every slide, sorted by slide; the same in all folds."""
    labels: dict[str, str] = {}
    for (fold, slide), entry in entries.items():
        if labels.setdefault(slide, entry.label) != entry.label:
            raise LabelsInvalid(
                f"Slide {slide!r} is {labels[slide]} in one fold of {root} and {entry.label} in "
                f"fold {fold}; keep one class."
            )
    return dict(sorted(labels.items()))


def _files_by_slide_and_scale(
    trees: Mapping[str, Mapping[_Key, _Entry]],
) -> dict[str, dict[str, Path]]:
    """One file per slide and scale; the copies in other folds must be equal to it."""
    files: dict[str, dict[str, Path]] = {}
    for name, tree in trees.items():
        for (_, slide), entry in tree.items():
            first = files.setdefault(slide, {}).setdefault(name, entry.path)
            if not entry.path.samefile(first) and not filecmp.cmp(first, entry.path, shallow=False):
                raise FeatureFileInvalid(
                    f"{entry.path} and {first} are one slide with different features; "
                    "copy one over the other."
                )
    return files


__all__ = ["ScaleTrees"]
