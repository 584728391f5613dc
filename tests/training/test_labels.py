from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.errors import LabelsInvalid
from cmamil_sdk.training.labels import read_labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,class\na,1\n", "no column 'label'"),
        ("slide,label\na,1\na,2\n", "names a more than once"),
        ("slide,label\na,1\nb,\n", "line 3: the label of slide 'b' is empty"),
        ("slide,patient,label\na,,1\nb,p,2\n", "the patient of slide 'a' is empty"),
        ("slide,label\na,1\nb,1\n", "2 slides with 1 label; "),
        ("", "no column 'slide'"),
        ("slide;label\na;1\nb;2\n", "separated by ';'.* with commas between the columns"),
        ("slide\tlabel\na\t1\nb\t2\n", "separated by tabs"),
        ("slide,label,label\na,1,2\n", "more than one column 'label'"),
        ("slide,label\na,1,x\n", "line 2: 3 values for 2 columns"),
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
    with pytest.raises(LabelsInvalid, match=r"cannot be read .No such file.*check its name"):
        read_labels(tmp_path / "absent.csv")
    path.write_bytes("slide,label\na,1\n".encode("utf-16"))
    with pytest.raises(LabelsInvalid, match="CSV in UTF-8"):
        read_labels(path)
