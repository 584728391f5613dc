"""Folds made by lot: stratified, with all slides of a patient (or of a site) in one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.wording import counted

from .labels import LabelRow, LabelTable, some
from .splits import PART_OF_WORD, SplitRow, check_splits, fold_numbers, folds_without_val

Float64 = npt.NDArray[np.float64]

_ATTEMPTS = 50
_MOST_GROUPS_DEALT = 20_000
"""Further deals are tried up to the first number, as long as they deal no more than the second."""


@dataclass(frozen=True)
class Groups:
    """Which slides must stay together.

    Attributes:
        of: slide -> its group.
        noun: what a group is, for messages.
    """

    of: Mapping[str, str]
    noun: str

    @classmethod
    def by_patient(cls, table: LabelTable) -> Groups:
        """All slides of a patient."""
        return cls({row.slide: row.patient for row in table.rows}, "patient")

    @classmethod
    def by_site(cls, table: LabelTable) -> Groups:
        """All slides of a site; sites that share a patient count as one.

        Raises:
            LabelsInvalid: a slide has no site.
        """
        bare = [row.slide for row in table.rows if not row.site]
        if bare:
            raise LabelsInvalid(
                f"{table.path} gives slide {some(bare)} no site; fill in a column site, or split "
                "by patient."
            )
        site_of: dict[str, str] = {}
        joined = {row.site: row.site for row in table.rows}
        for row in table.rows:
            one, other = joined[site_of.setdefault(row.patient, row.site)], joined[row.site]
            joined = {site: one if name == other else name for site, name in joined.items()}
        return cls({row.slide: joined[row.site] for row in table.rows}, "site")


def make_folds(
    table: LabelTable,
    *,
    folds: int,
    val_share: float,
    test_share: float,
    seed: int,
    monte_carlo: bool = False,
    by_site: bool = False,
) -> list[SplitRow]:
    """Stratified folds, a patient never on two sides.

    In k-fold cross-validation every slide is in the test part of exactly one fold. With
    ``monte_carlo``, or a single fold, each fold is drawn anew and tests ``test_share``.

    Args:
        table: the labels.
        folds: how many.
        val_share: share of what is not tested that goes to val.
        test_share: read in the second case only.
        seed: of the lot.
        monte_carlo: draw each fold anew.
        by_site: all slides of a site in one part of a fold, too.

    Raises:
        LabelsInvalid: a label has too few patients or sites, or they cannot be dealt so that every
            fold trains and tests it.
    """
    rng = np.random.default_rng(seed)
    groups = Groups.by_site(table) if by_site else Groups.by_patient(table)
    drawn_anew = monte_carlo or folds == 1
    _refuse_small_labels(table, groups, 2 if drawn_anew else folds)
    if drawn_anew:
        deck = _Deck(table.rows, groups, [1 - test_share, test_share])
        tests = [deck.deal(rng, required=(0, 1))[1] for _ in range(folds)]
    else:
        tests = _Deck(table.rows, groups, [1 / folds] * folds).deal(rng, required=range(folds))
    rows: list[SplitRow] = []
    for fold, test in enumerate(tests):
        drawn = [
            _split_row(row, fold, "test" if groups.of[row.slide] in test else "train")
            for row in table.rows
        ]
        rows += _move_to_val(drawn, groups, val_share, rng, str(table.path))
    check_splits(rows, table, str(table.path))
    return rows


def fixed_split(table: LabelTable) -> list[SplitRow]:
    """The single split of the table's own split column.

    Its words are train, val, test, or development (train) and held_out (test).

    Raises:
        LabelsInvalid: another word, a patient in two parts, or a part lacks a label.
    """
    unknown = {row.split for row in table.rows} - set(PART_OF_WORD)
    if unknown:
        raise LabelsInvalid(
            f"{table.path}: split {some(unknown)} is not known; "
            f"write one of {', '.join(PART_OF_WORD)}."
        )
    rows = [_split_row(row, 0, PART_OF_WORD[row.split]) for row in table.rows]
    check_splits(rows, table, str(table.path))
    return rows


def with_validation(
    rows: Sequence[SplitRow], table: LabelTable, *, val_share: float, seed: int
) -> list[SplitRow]:
    """The same folds; where one has no val part, a share of its training patients becomes it.

    Raises:
        LabelsInvalid: a training part cannot spare it.
    """
    rng = np.random.default_rng(seed)
    groups = Groups.by_patient(table)
    bare = folds_without_val(rows)
    result: list[SplitRow] = []
    for fold in fold_numbers(rows):
        members = [row for row in rows if row.fold == fold]
        if fold in bare:
            members = _move_to_val(members, groups, val_share, rng, str(table.path))
        result += members
    check_splits(result, table, str(table.path))
    return result


def _split_row(row: LabelRow, fold: int, split: str) -> SplitRow:
    return SplitRow(row.slide, row.patient, row.label, fold, split)


def _move_to_val(
    rows: Sequence[SplitRow], groups: Groups, share: float, rng: np.random.Generator, where: str
) -> list[SplitRow]:
    """The rows of a fold with a share of the training groups moved to val."""
    if share == 0:
        return list(rows)
    training = [row for row in rows if row.split == "train"]
    val = _Deck(training, groups, [1 - share, share]).deal(rng, required=(0,))[1]
    learned = {row.label for row in training if groups.of[row.slide] not in val}
    if not val or learned != {row.label for row in training}:
        raise LabelsInvalid(
            f"{where}, fold {rows[0].fold}: the training part has too few {groups.noun}s to spare "
            "any for val; set its share to 0, use fewer folds, or add slides."
        )
    return [
        replace(row, split="val") if row.split == "train" and groups.of[row.slide] in val else row
        for row in rows
    ]


def _refuse_small_labels(table: LabelTable, groups: Groups, needed: int) -> None:
    for label in table.labels:
        found = {groups.of[row.slide] for row in table.rows if row.label == label}
        if len(found) < needed:
            raise LabelsInvalid(
                f"{table.path}: label {label!r} has slides of {counted(len(found), groups.noun)}, "
                f"{needed} are needed so that every fold can train and test it; "
                "use fewer folds, add slides, or remove the label."
            )


class _Deck:
    """Groups of slides to be dealt to parts, so that each part gets its share of every label.

    Args:
        rows: the slides, with their labels.
        groups: what stays together.
        shares: of the parts; they sum to 1.
    """

    def __init__(
        self, rows: Sequence[LabelRow | SplitRow], groups: Groups, shares: Sequence[float]
    ) -> None:
        names = sorted({row.label for row in rows})
        self._counts: dict[str, Float64] = {}
        for row in rows:
            count = self._counts.setdefault(groups.of[row.slide], np.zeros(len(names)))
            count[names.index(row.label)] += 1
        self._totals = np.sum(list(self._counts.values()), axis=0)
        holders = np.sum([count > 0 for count in self._counts.values()], axis=0)
        self._wanted = _wanted(self._totals, holders, shares)
        self._few = groups.noun == "site"

    def deal(self, rng: np.random.Generator, *, required: Sequence[int]) -> list[set[str]]:
        """Groups of each part; the parts ``required`` get every label if any deal tried does it.

        The first deal takes the largest groups first, equal ones in random order. It stands unless
        a part lacks a label that it could have; sites, few and large, are dealt many times for the
        best fit.
        """
        order = self._shuffled(rng)
        best = self._deal_once(sorted(order, key=lambda group: -self._counts[group].sum()))
        for _ in range(min(_ATTEMPTS, max(2, _MOST_GROUPS_DEALT // len(order)))):
            if not self._few and self._missing(best) == 0:
                break
            other = self._deal_once(self._shuffled(rng), cover=True)
            best = min(best, other, key=lambda parts: self._cost(parts, required))
        return best

    def _shuffled(self, rng: np.random.Generator) -> list[str]:
        names = list(self._counts)
        return [names[i] for i in rng.permutation(len(names))]

    def _deal_once(self, order: Sequence[str], *, cover: bool = False) -> list[set[str]]:
        """Each group goes where it takes most off the squared distance to the wanted counts.

        The distance is relative to the size of the label. With ``cover`` a group goes first where
        it brings the most labels that are still missing.
        """
        have = np.zeros_like(self._wanted)
        parts: list[set[str]] = [set() for _ in self._wanted]
        for group in order:
            count = self._counts[group]
            gap = self._wanted - have
            gain = ((gap**2 - (gap - count) ** 2) / self._totals).sum(axis=1)
            if cover:
                brings = ((have == 0) & (self._wanted > 0) & (count > 0)).sum(axis=1)
                gain = np.where(brings == brings.max(), gain, -np.inf)
            best = int(np.argmax(gain))
            have[best] += count
            parts[best].add(group)
        return parts

    def _have(self, parts: Sequence[set[str]]) -> Float64:
        zero = np.zeros_like(self._totals)
        return np.array([sum((self._counts[group] for group in part), zero) for part in parts])

    def _missing(self, parts: Sequence[set[str]], among: Sequence[int] | None = None) -> int:
        """Labels that parts lack and could have, over all parts or some."""
        lacks = (self._have(parts) == 0) & (self._wanted > 0)
        return int(lacks[list(among) if among is not None else slice(None)].sum())

    def _cost(self, parts: Sequence[set[str]], required: Sequence[int]) -> tuple[int, int, float]:
        distance = (self._wanted - self._have(parts)) ** 2 / self._totals
        return self._missing(parts, required), self._missing(parts), float(distance.sum())


def _wanted(totals: Float64, holders: Float64, shares: Sequence[float]) -> Float64:
    """Slides per part and label, from the slides and the groups of each label.

    A small part gets one of each label that has at least two groups, and none of one that has one.
    """
    wanted = np.outer(shares, totals)
    largest = int(np.argmax(shares))
    for part in range(len(shares)):
        if part != largest:
            wanted[part] = np.where(holders >= 2, np.maximum(wanted[part], 1.0), 0.0)
    wanted[largest] = totals - np.delete(wanted, largest, axis=0).sum(axis=0)
    return wanted


__all__ = ["Groups", "fixed_split", "make_folds", "with_validation"]
