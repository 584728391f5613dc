from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.training.folds import fixed_split, make_folds, with_validation
from cmamil_sdk.training.labels import LabelRow, LabelTable
from cmamil_sdk.training.splits import PARTS, SplitRow, check_splits, fold_numbers, slides_of

from .tables import LABELS, table_of

pytestmark = pytest.mark.usefixtures("blank_pictures")


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=24, max_size=60),
    folds=st.integers(1, 5),
    val_share=st.sampled_from([0.0, 0.1, 0.25]),
    seed=st.integers(0, 1000),
)
def test_folds_keep_patients_whole_and_cover_every_slide(
    sizes: list[int], folds: int, val_share: float, seed: int
) -> None:
    table = table_of(sizes)
    options = {"folds": folds, "val_share": val_share, "test_share": 0.25, "seed": seed}
    rows = make_folds(table, **options)
    assert rows == make_folds(table, **options)
    tested: list[str] = []
    for fold in range(folds):
        parts = {part: slides_of(rows, fold, part) for part in ("train", "val", "test")}
        assert sorted(chain.from_iterable(parts.values())) == sorted(table.by_slide)
        patients = {
            part: {table.by_slide[slide].patient for slide in slides}
            for part, slides in parts.items()
        }
        assert not patients["train"] & patients["test"]
        assert not patients["train"] & patients["val"]
        assert not patients["val"] & patients["test"]
        assert bool(parts["val"]) == (val_share > 0)
        tested += parts["test"]
    if folds > 1:
        assert sorted(tested) == sorted(table.by_slide)


def test_folds_are_stratified_and_of_like_size() -> None:
    table = table_of([1] * 150)
    rows = make_folds(table, folds=5, val_share=0.2, test_share=0.2, seed=3)
    for fold in range(5):
        for part, size in (("test", 10), ("val", 8), ("train", 32)):
            counts = Counter(table.by_slide[s].label for s in slides_of(rows, fold, part))
            assert counts == dict.fromkeys(LABELS, size)
    assert rows != make_folds(table, folds=5, val_share=0.2, test_share=0.2, seed=4)


def test_a_rare_label_reaches_the_validation() -> None:
    rows = [LabelRow(f"s{i}", f"p{i}", "rare" if i < 6 else "common") for i in range(100)]
    table = LabelTable(Path("labels.csv"), tuple(rows), has_split=False)
    made = make_folds(table, folds=3, val_share=0.1, test_share=0.2, seed=0)
    for fold in range(3):
        for part in ("train", "val", "test"):
            assert any(table.by_slide[s].label == "rare" for s in slides_of(made, fold, part))


def test_too_few_patients_of_a_label_are_named() -> None:
    with pytest.raises(LabelsInvalid, match=r"'c' has slides of 4 patients, 5 are needed"):
        make_folds(table_of([1] * 14), folds=5, val_share=0.1, test_share=0.2, seed=0)


def test_fixed_split_with_the_demo_words_takes_validation_from_development() -> None:
    table = table_of([2] * 30, ["development"] * 21 + ["held_out"] * 9)
    rows = with_validation(fixed_split(table), table, val_share=0.2, seed=0)
    assert fold_numbers(rows) == [0]
    assert slides_of(rows, 0, "test") == [f"s{p}_{i}" for p in range(21, 30) for i in range(2)]
    val = {table.by_slide[s].patient for s in slides_of(rows, 0, "val")}
    train = {table.by_slide[s].patient for s in slides_of(rows, 0, "train")}
    assert val and not val & train and len(train) + len(val) == 21


def test_fixed_split_with_its_own_validation_is_kept() -> None:
    words = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    table = table_of([1] * 12, words)
    rows = with_validation(fixed_split(table), table, val_share=0.5, seed=0)
    assert [row.split for row in rows] == words


def test_fixed_split_refuses_unknown_words_and_torn_patients() -> None:
    with pytest.raises(LabelsInvalid, match="split holdout"):
        fixed_split(table_of([1] * 6, ["train"] * 3 + ["holdout"] * 3))
    rows = tuple(
        LabelRow(f"s{i}", "p", LABELS[i % 3], split="train" if i < 3 else "test") for i in range(6)
    )
    with pytest.raises(LabelsInvalid, match="patient p are in more than one part"):
        fixed_split(LabelTable(Path("l.csv"), rows, has_split=True))


def test_a_fold_without_a_label_in_train_or_test_is_refused() -> None:
    table = table_of([1] * 9, ["train"] * 6 + ["test"] * 2 + ["train"])
    with pytest.raises(LabelsInvalid, match="fold 0: no test slide has the label c"):
        fixed_split(table)


def test_check_refuses_a_patient_on_both_sides() -> None:
    table = table_of([2] * 6)
    rows = make_folds(table, folds=1, val_share=0, test_share=0.5, seed=0)
    torn = [*rows[:-1], type(rows[0])(rows[-1].slide, rows[-1].patient, "c", 0, "val")]
    with pytest.raises(LabelsInvalid, match="more than one part"):
        check_splits(torn, table, "splits.csv")


def parts_of(rows: list[SplitRow], fold: int) -> dict[str, str]:
    """Slide -> part in one fold."""
    return {row.slide: row.split for row in rows if row.fold == fold}


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.sampled_from(LABELS), min_size=30, max_size=90),
    folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_shares_of_every_label_are_within_one_patient(
    labels: list[str], folds: int, seed: int
) -> None:
    counts = Counter(labels)
    assume(len(counts) == 3 and min(counts.values()) >= folds)
    rows = [LabelRow(f"s{i}", f"p{i}", label) for i, label in enumerate(labels)]
    table = LabelTable(Path("labels.csv"), tuple(rows), has_split=False)
    made = make_folds(table, folds=folds, val_share=0, test_share=0.2, seed=seed)
    for fold in range(folds):
        tested = Counter(table.by_slide[s].label for s in slides_of(made, fold, "test"))
        for label, total in counts.items():
            assert abs(tested[label] - total / folds) < 1


@settings(max_examples=15, deadline=None)
@given(
    sites=st.lists(st.integers(1, 12), min_size=9, max_size=20),
    folds=st.integers(1, 3),
    monte_carlo=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_by_site_no_site_and_no_patient_is_on_two_sides(
    sites: list[int], folds: int, monte_carlo: bool, seed: int
) -> None:
    rows = [
        LabelRow(f"s{site}_{i}_{label}", f"p{site}_{i}", label, site=f"S{site}")
        for site, size in enumerate(sites)
        for i in range(size)
        for label in LABELS
    ]
    # one patient was seen at two sites, which therefore stay together
    rows.append(LabelRow("elsewhere", "p0_0", "a", site="S1"))
    table = LabelTable(Path("labels.csv"), tuple(rows), has_split=False)
    options = {"folds": folds, "val_share": 0.1, "test_share": 0.25, "seed": seed}
    made = make_folds(table, **options, monte_carlo=monte_carlo, by_site=True)  # type: ignore[arg-type]
    assert made == make_folds(table, **options, monte_carlo=monte_carlo, by_site=True)  # type: ignore[arg-type]
    tested: list[str] = []
    for fold in range(folds):
        part_of = parts_of(made, fold)
        assert part_of.keys() == table.by_slide.keys()
        for field in ("site", "patient"):
            sides: dict[str, set[str]] = {}
            for slide, part in part_of.items():
                sides.setdefault(getattr(table.by_slide[slide], field), set()).add(part)
            assert all(len(parts) == 1 for parts in sides.values())
        assert part_of["s0_0_a"] == part_of["s1_0_a"] == part_of["elsewhere"]
        assert set(part_of.values()) == set(PARTS)
        tested += slides_of(made, fold, "test")
    if folds > 1 and not monte_carlo:
        assert sorted(tested) == sorted(table.by_slide)


def test_monte_carlo_draws_each_fold_anew() -> None:
    table = table_of([1] * 90)
    made = make_folds(table, folds=6, val_share=0.1, test_share=0.2, seed=0, monte_carlo=True)
    tests = [frozenset(slides_of(made, fold, "test")) for fold in range(6)]
    assert len(set(tests)) == 6 and any(one & other for one in tests for other in tests)
    for test in tests:
        assert Counter(table.by_slide[s].label for s in test) == dict.fromkeys(LABELS, 6)


def site_table(sites: dict[str, str]) -> LabelTable:
    """Four slides for each site, of the labels that it has."""
    rows = [
        LabelRow(f"{site}{i}{label}", f"p{site}{i}{label}", label, site=site)
        for site, labels in sites.items()
        for label in labels
        for i in range(4)
    ]
    return LabelTable(Path("labels.csv"), tuple(rows), has_split=False)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"S": "ab"}, "label 'a' has slides of 1 site, 2 are needed"),
        ({"S": "ab", "T": "a", "U": "a"}, "label 'b' has slides of 1 site"),
        ({"S": "ab", "T": "ab"}, "too few sites to spare any for val"),
        ({"S": "ab", "": "ab"}, "no site"),
    ],
)
def test_sites_that_cannot_be_dealt(sites: dict[str, str], message: str) -> None:
    with pytest.raises(LabelsInvalid, match=message):
        make_folds(site_table(sites), folds=2, val_share=0.2, test_share=0.2, seed=0, by_site=True)


def test_large_groups_are_dealt_so_that_no_part_lacks_a_label() -> None:
    sizes = {"L": 50, "M": 5, "N": 5, "O": 40, "P": 4, "Q": 4}
    rows = [
        LabelRow(f"{site}{i}", f"p{site}{i}", "a" if site in "LMN" else "b", site=site)
        for site, size in sizes.items()
        for i in range(size)
    ]
    table = LabelTable(Path("labels.csv"), tuple(rows), has_split=False)
    made = make_folds(table, folds=3, val_share=0.1, test_share=0.2, seed=0, by_site=True)
    for fold in range(3):
        sites = {table.by_slide[s].site for s in slides_of(made, fold, "val")}
        assert len(sites) == 2, "one of each label can be spared, and is"


def test_a_patient_heavier_than_the_share_still_becomes_val() -> None:
    made = make_folds(table_of([4] * 12), folds=2, val_share=0.1, test_share=0.2, seed=0)
    for fold in range(2):
        assert {row.label for row in made if (row.fold, row.split) == (fold, "val")} == set(LABELS)


def test_val_is_not_taken_where_training_would_lose_a_label() -> None:
    with pytest.raises(LabelsInvalid, match=r"fold 0: .* too few patients to spare any for val"):
        make_folds(table_of([1] * 6), folds=2, val_share=0.2, test_share=0.2, seed=0)


def test_only_folds_without_val_are_given_one() -> None:
    table = table_of([1] * 30)
    rows = make_folds(table, folds=2, val_share=0.2, test_share=0.2, seed=0)
    bare = [replace(r, split="train") if r.fold == 0 and r.split == "val" else r for r in rows]
    made = with_validation(bare, table, val_share=0.4, seed=4)
    assert parts_of(made, 1) == parts_of(rows, 1)
    assert Counter(parts_of(made, 0).values()) == {"train": 9, "val": 6, "test": 15}
    assert with_validation(bare, table, val_share=0, seed=4) == bare
