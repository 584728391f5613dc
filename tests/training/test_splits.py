from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.training.folds import fixed_split, make_folds, with_validation
from cmamil_sdk.training.labels import LabelRow, LabelTable, read_labels
from cmamil_sdk.training.split_files import read_splits, write_splits
from cmamil_sdk.training.splits import check_splits, fold_numbers, slides_of

LABELS = ("a", "b", "c")


def table_of(sizes: list[int], splits: list[str] | None = None) -> LabelTable:
    """One patient per size with so many slides, labels in turn."""
    rows = [
        LabelRow(f"s{p}_{i}", f"p{p}", LABELS[p % 3], split=splits[p] if splits else "")
        for p, size in enumerate(sizes)
        for i in range(size)
    ]
    return LabelTable(Path("labels.csv"), tuple(rows), has_split=splits is not None)


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


def test_splits_round_trip(tmp_path: Path) -> None:
    table = table_of([2] * 24)
    rows = make_folds(table, folds=3, val_share=0.2, test_share=0.2, seed=0)
    write_splits(tmp_path / "splits.csv", rows)
    header = (tmp_path / "splits.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "slide,patient,label,fold,split"
    assert read_splits(tmp_path, table) == rows
    assert read_splits(tmp_path / "splits.csv", table) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nobody,p0,a,0,train", "nobody"),
        ("s0_0,p9,a,0,train", "patient 'p9'"),
        ("s0_0,p0,b,0,train", "label 'b'"),
        ("s0_0,p0,a,x,train", "fold 'x'"),
        ("s0_0,p0,a,0,holdout", "split 'holdout'"),
        ("s0_0,p0,a,0", "4 values for 5 columns"),
        ("s0_0,p0,a,0,train\ns0_0,p0,a,0,train", "s0_0 stands there twice"),
        ("", "holds no slide"),
    ],
)
def test_bad_splits_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(f"slide,patient,label,fold,split\n{line}\n", encoding="utf-8")
    with pytest.raises(LabelsInvalid, match=message):
        read_splits(path, table_of([1] * 6))


def test_check_refuses_a_patient_on_both_sides() -> None:
    table = table_of([2] * 6)
    rows = make_folds(table, folds=1, val_share=0, test_share=0.5, seed=0)
    torn = [*rows[:-1], type(rows[0])(rows[-1].slide, rows[-1].patient, "c", 0, "val")]
    with pytest.raises(LabelsInvalid, match="more than one part"):
        check_splits(torn, table, "splits.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,class\na,1\n", "no column 'label'"),
        ("slide,label\na,1\na,2\n", "names a more than once"),
        ("slide,label\na,1\nb,\n", "line 3: the label of slide 'b' is empty"),
        ("slide,patient,label\na,,1\nb,p,2\n", "the patient of slide 'a' is empty"),
        ("slide,label\na,1\nb,1\n", "1 different labels"),
        ("", "no column 'slide'"),
    ],
)
def test_bad_labels_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabelsInvalid, match=message):
        read_labels(path)


def test_labels_are_read_as_text_with_their_other_names(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffcase_id,slide_id,label,age\nP1,007,2,80\nP2,Ünï,10,70\n".encode())
    table = read_labels(path)
    assert table.labels == ("10", "2")
    assert table.by_slide["007"].patient == "P1"
    assert table.class_of("Ünï") == 0
    with pytest.raises(LabelsInvalid, match="cannot be read"):
        read_labels(tmp_path / "absent.csv")
