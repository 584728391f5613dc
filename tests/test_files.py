"""Files are whole or absent; documents are valid or refused."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmamil_sdk.errors import BundleCorrupt, OutputUnwritable, RunInvalid
from cmamil_sdk.files import csv_text, parse_document, sha256_of_file, write_atomic, write_json
from cmamil_sdk.tiling.recipe import TilingRecipe


class Inner(BaseModel):
    share: float = Field(ge=0)


class Outer(BaseModel):
    inner: Inner


def test_write_atomic_replaces_whole_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_atomic(path, b"old")

    def fail(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OutputUnwritable, match=r"file\.bin cannot be written \(disk full\)"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_keeps_text_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"name": "Gewebe µm 🔬"})
    assert json.loads(path.read_text("utf-8")) == {"name": "Gewebe µm 🔬"}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"auc": math.nan})
    assert json.loads(path.read_text("utf-8")) == {"name": "Gewebe µm 🔬"}


def test_sha256(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_of_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_bad_field_is_named_with_its_file():
    with pytest.raises(
        RunInvalid, match=r"run\.json: inner\.share is -1 and must be at least 0; give"
    ):
        parse_document(Outer, {"inner": {"share": -1}}, where="run.json", error=RunInvalid)
    assert parse_document(Outer, {"inner": {"share": 1}}, where="x", error=RunInvalid).inner


def test_a_field_that_checks_itself_still_ends_in_the_error_asked_for():
    document = {"scales": [{"name": "20x", "mpp": 0.5}, {"name": "5x", "mpp": 2.0}]}
    with pytest.raises(BundleCorrupt, match=r"manifest\.json.*20x"):
        parse_document(TilingRecipe, document, where="manifest.json", error=BundleCorrupt)


def test_a_csv_table_quotes_what_needs_it_and_has_unix_line_ends() -> None:
    lines = [("a,b", 1), ('say "x"', 0.5), ("ü", "")]
    assert csv_text(("name", "n"), lines) == 'name,n\n"a,b",1\n"say ""x""",0.5\nü,\n'


class Checked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    epochs: int = 1
    seed: int = Field(0, lt=2**32)

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.epochs % 2 == 0:
            raise ValueError("epochs is even; give an odd number")
        return self


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"epoch": 3}, "epoch is no entry known here; did you mean 'epochs'?"),
        ({"colour": 3}, "colour is no entry known here; remove it."),
        ({"epochs": 2}, "epochs is even; give an odd number."),
        ({"epochs": "many"}, "epochs is 'many' and must be a whole number; give another value."),
        (
            {"seed": 2**32},
            "seed is 4294967296 and must be less than 4294967296; give another value.",
        ),
    ],
)
def test_problems_are_said_in_plain_words(document, sentence):
    with pytest.raises(RunInvalid) as caught:
        parse_document(Checked, document, where="file.yaml", error=RunInvalid)
    assert str(caught.value) == f"file.yaml: {sentence}"
