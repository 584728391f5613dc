from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.errors import LabelsInvalid, OutputExists
from cmamil_sdk.training.folds import make_folds
from cmamil_sdk.training.labels import LabelRow, LabelTable
from cmamil_sdk.training.split_files import (
    SplitFormat,
    read_splits,
    write_split_files,
    write_splits,
)
from cmamil_sdk.training.splits import SplitRow

from .tables import table_of


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


def as_sets(rows: list[SplitRow]) -> list[set[tuple[str, str]]]:
    """Per fold, in order, which slide is in which part."""
    numbers = sorted({row.fold for row in rows})
    return [{(r.slide, r.split) for r in rows if r.fold == number} for number in numbers]


@pytest.mark.parametrize("form", ["cmamil", "clam", "cma-mil"])
@pytest.mark.parametrize("val_share", [0.0, 0.2])
def test_every_form_holds_every_part(tmp_path: Path, form: SplitFormat, val_share: float) -> None:
    table = table_of([2] * 30)
    rows = make_folds(table, folds=3, val_share=val_share, test_share=0.2, seed=0)
    names = write_split_files(tmp_path / "folds", rows, form)
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == names
    assert as_sets(read_splits(tmp_path / "folds", table)) == as_sets(rows)


def test_the_files_look_like_those_of_the_other_tools(tmp_path: Path) -> None:
    rows = [
        SplitRow(s, s, label, 0, part)
        for s, label, part in (
            ("a", "x", "train"),
            ("b", "y", "train"),
            ("c", "x", "val"),
            ("d", "x", "test"),
            ("e", "y", "test"),
        )
    ]
    write_split_files(tmp_path / "clam", rows, "clam")
    clam = (tmp_path / "clam" / "splits_0.csv").read_text(encoding="utf-8")
    assert clam == ",train,val,test\n0,a,c,d\n1,b,,e\n"
    write_split_files(tmp_path / "cma", rows, "cma-mil")
    training = (tmp_path / "cma" / "fold_1_training.csv").read_text(encoding="utf-8")
    assert training == "class,filename,split\nx,a,train\ny,b,train\nx,c,val\n"
    test = (tmp_path / "cma" / "fold_1_test.csv").read_text(encoding="utf-8")
    assert test == "class,filename,split\nx,d,test\ny,e,test\n"
    write_split_files(tmp_path / "bare", [row for row in rows if row.split != "val"], "cma-mil")
    test = (tmp_path / "bare" / "fold_1_test.csv").read_text(encoding="utf-8")
    assert test == "class,filename\nx,d\ny,e\n"


def test_a_folder_is_never_mixed_with_older_folds(tmp_path: Path) -> None:
    rows = make_folds(table_of([1] * 30), folds=3, val_share=0, test_share=0.2, seed=0)
    (tmp_path / "empty").mkdir()
    assert write_split_files(tmp_path / "empty", rows, "clam") == [
        f"splits_{n}.csv" for n in range(3)
    ]
    for taken in (tmp_path / "empty", tmp_path / "empty" / "splits_0.csv"):
        with pytest.raises(OutputExists, match="not an empty folder"):
            write_split_files(taken, rows, "cmamil")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


KIDNEY = LabelTable(
    Path("labels.csv"),
    tuple(LabelRow(s, s, s[:2]) for s in ("cc.1", "cc.2", "cc.3", "ch.1", "ch.2", "ch.3")),
    has_split=False,
)


def write_cma(folder: Path, training: str, test: str, fold: int = 1) -> None:
    (folder / f"fold_{fold}_training.csv").write_bytes(training.encode())
    (folder / f"fold_{fold}_test.csv").write_bytes(test.encode())


def test_cma_mil_folds_with_numbered_classes_and_windows_line_ends(tmp_path: Path) -> None:
    write_cma(
        tmp_path,
        "class,filename\r\n7,cc.1.svs\r\n7,cc.2\r\n3,ch.1\r\n3,ch.2.npy\r\n",
        "class,filename\r\n7,cc.3\r\n3,ch.3\r\n",
    )
    rows = read_splits(tmp_path, KIDNEY)
    assert [(r.slide, r.label, r.fold, r.split) for r in rows] == [
        ("cc.1", "cc", 1, "train"),
        ("cc.2", "cc", 1, "train"),
        ("ch.1", "ch", 1, "train"),
        ("ch.2", "ch", 1, "train"),
        ("cc.3", "cc", 1, "test"),
        ("ch.3", "ch", 1, "test"),
    ]


def test_cma_mil_folds_with_their_own_validation(tmp_path: Path) -> None:
    write_cma(
        tmp_path,
        "class,filename,split\n0,cc.1,train\n0,cc.2,val\n1,ch.1,train\n1,ch.2,val\n",
        "class,filename,split\n0,cc.3,test\n1,ch.3,test\n",
    )
    rows = read_splits(tmp_path, KIDNEY)
    assert {r.slide for r in rows if r.split == "val"} == {"cc.2", "ch.2"}


@pytest.mark.parametrize(
    ("training", "test", "message"),
    [
        (
            "0,cc.1\n1,cc.2\n1,ch.1\n",
            "0,cc.3\n1,ch.3\n",
            "'cc.2' of class 1 has the label 'cc', which slide 'cc.1' of class 0",
        ),
        (
            "0,cc.1\n0,ch.1\n",
            "0,cc.3\n1,ch.3\n",
            "'ch.1' of class 0 has the label 'ch', slide 'cc.1' of the same class has 'cc'",
        ),
        ("0,cc.1\n1,ch.1\n", "0,cc.3\n1,ch.9.svs\n", "'ch.9.svs', which labels.csv does not"),
        ("0,cc.1\n1,ch.1\n0,cc.3\n", "0,cc.3\n1,ch.3\n", "fold 1: cc.3 stands there twice"),
        ("0,cc.1\n1,ch.1\n", "0,cc.3\n", "no test slide has the label ch"),
    ],
)
def test_bad_cma_mil_folds_are_named(
    tmp_path: Path, training: str, test: str, message: str
) -> None:
    write_cma(tmp_path, f"class,filename\n{training}", f"class,filename\n{test}")
    with pytest.raises(LabelsInvalid, match=message):
        read_splits(tmp_path, KIDNEY)


def test_a_test_slide_among_the_training_of_cma_mil(tmp_path: Path) -> None:
    header = "class,filename,split\n"
    write_cma(
        tmp_path, f"{header}0,cc.1,test\n1,ch.1,train\n", f"{header}0,cc.3,test\n1,ch.3,test\n"
    )
    with pytest.raises(LabelsInvalid, match=r"fold_1_training\.csv: split 'test' of slide 'cc.1'"):
        read_splits(tmp_path, KIDNEY)
    (tmp_path / "fold_1_test.csv").unlink()
    with pytest.raises(LabelsInvalid, match="fold_1"):
        read_splits(tmp_path, KIDNEY)


def test_clam_folds_as_clam_writes_them(tmp_path: Path) -> None:
    (tmp_path / "splits_0.csv").write_text(
        ",train,val,test\n0,cc.1,,cc.3\n1,ch.1,,ch.3\n2,ch.2,,\n", encoding="utf-8"
    )
    (tmp_path / "splits_0_bool.csv").write_text(",train,val,test\ncc.1,True,False,False\n")
    (tmp_path / "splits_0_descriptor.csv").write_text(",train,val,test\ncc,1,0,1\n")
    rows = read_splits(tmp_path, KIDNEY)
    assert [(r.slide, r.split) for r in rows] == [
        ("cc.1", "train"),
        ("ch.1", "train"),
        ("ch.2", "train"),
        ("cc.3", "test"),
        ("ch.3", "test"),
    ]
    (tmp_path / "splits_1.csv").write_text("train,val\ncc.1,\n", encoding="utf-8")
    with pytest.raises(LabelsInvalid, match=r"splits_1\.csv has no column test"):
        read_splits(tmp_path, KIDNEY)


def test_a_folder_without_folds_or_with_two_forms(tmp_path: Path) -> None:
    with pytest.raises(LabelsInvalid, match="holds no folds"):
        read_splits(tmp_path, KIDNEY)
    (tmp_path / "splits.csv").write_text("slide,fold,split\n", encoding="utf-8")
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n", encoding="utf-8")
    with pytest.raises(LabelsInvalid, match="folds of several forms"):
        read_splits(tmp_path, KIDNEY)
