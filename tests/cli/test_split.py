"""``cmamil split``: folds made, taken over, and refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.folds import make_folds
from cmamil_sdk.training.labels import read_labels
from cmamil_sdk.training.split_files import splits_text


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Twenty-four patients of two slides at three sites, labels in turn."""
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "slide_id", "label", "site"])
        for n in range(48):
            writer.writerow([f"p{n // 2}", f"s{n:02}", "ab"[n // 2 % 2], f"S{n // 2 % 3}"])
    return path


def test_folds_are_written_and_tabled(
    cmamil: Callable[..., Any], labels: Path, tmp_path: Path
) -> None:
    made = cmamil("split", "--labels", labels, "--out", tmp_path / "s", "--folds", "4", "--json")
    assert made.code == 0, made.err
    document = made.document
    assert (document["format"], document["files"]) == ("cmamil", ["splits.csv"])
    assert [(p["fold"], p["part"]) for p in document["parts"][:4]] == [
        (0, "train"),
        (0, "val"),
        (0, "test"),
        (1, "train"),
    ]
    for part in document["parts"]:
        assert part["labels"] == {"a": part["slides"] / 2, "b": part["slides"] / 2}
        assert part["patients"] == part["slides"] / 2
        if part["part"] == "test":
            assert part["slides"] == 12
    shown = cmamil("split", "--labels", labels, "--out", tmp_path / "t", "--folds", "4")
    assert shown.out.splitlines()[0].split() == ["fold", "part", "slides", "patients", "a", "b"]
    assert shown.out.splitlines()[3].split() == ["0", "test", "12", "6", "6", "6"]
    first, second = ((tmp_path / name / "splits.csv").read_bytes() for name in "st")
    assert first == second
    other = cmamil("split", "--labels", labels, "--out", tmp_path / "u", "--seed", "2")
    assert other.code == 0
    assert (tmp_path / "u" / "splits.csv").read_bytes() != first


def test_the_defaults_are_those_of_training(
    cmamil: Callable[..., Any], labels: Path, tmp_path: Path
) -> None:
    made = cmamil("split", "--labels", labels, "--out", tmp_path / "s", "--json")
    config = make_config()
    table = read_labels(labels)
    folds = make_folds(
        table, folds=5, val_share=config.val_share, test_share=config.test_share, seed=config.seed
    )
    assert made.code == 0, made.err
    assert (tmp_path / "s" / "splits.csv").read_text(encoding="utf-8") == splits_text(folds)


@pytest.mark.parametrize("form", ["clam", "cma-mil"])
def test_folds_travel_between_the_forms(
    cmamil: Callable[..., Any], labels: Path, tmp_path: Path, form: str
) -> None:
    ours = ("split", "--labels", labels, "--json", "--out")
    made = cmamil(*ours, tmp_path / "made", "--folds", "3", "--monte-carlo", "--test-share", "0.25")
    away = cmamil(*ours, tmp_path / "away", "--splits", tmp_path / "made", "--format", form)
    back = cmamil(*ours, tmp_path / "back", "--splits", tmp_path / "away")
    assert away.code == back.code == 0, away.err + back.err

    def counts(answer: Any) -> list[Any]:
        return [(p["part"], p["slides"], p["labels"]) for p in answer.document["parts"]]

    assert counts(made) == counts(away) == counts(back)
    assert sum(p["slides"] for p in made.document["parts"] if p["part"] == "test") == 36
    two = cmamil(*ours, tmp_path / "two", "--splits", tmp_path / "away", "--folds", "2")
    assert counts(two) == counts(made)[:6]


def test_sites_stay_whole(cmamil: Callable[..., Any], labels: Path, tmp_path: Path) -> None:
    made = cmamil("split", "--labels", labels, "--out", tmp_path / "s", "--folds", "3", "--by-site")
    assert made.code == 0, made.err
    with (tmp_path / "s" / "splits.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sides = {(r["fold"], int(r["patient"][1:]) % 3, r["split"]) for r in rows}
    assert len(sides) == 9, "three folds of three sites, each on one side"


def test_the_command_of_hmil(cmamil: Callable[..., Any], labels: Path, tmp_path: Path) -> None:
    (tmp_path / "F").mkdir()
    for n in range(48):
        np.save(tmp_path / "F" / f"s{n:02}.npy", np.ones((2, 3), np.float32))
    made = ("split", "--labels", labels, "--out", tmp_path / "S", "--format", "clam")
    assert cmamil(*made).code == 0
    line = (
        f"--feature_directory {tmp_path / 'F'} --root {tmp_path / 'D'} --label_csv {labels} "
        f"--split_csv_root {tmp_path / 'S'} --folds 5"
    )
    answer = cmamil("split", *line.split())
    assert answer.code == 0, answer.err
    assert [path.name for path in (tmp_path / "D").iterdir()] == ["splits.csv"]
    (tmp_path / "F" / "s07.npy").unlink()
    answer = cmamil("split", *line.replace("/D", "/E").split())
    assert answer.code == 2
    assert "s07" in answer.err and "LABELS_INVALID" in answer.err


@pytest.mark.parametrize(
    ("options", "reason", "words"),
    [
        (("--folds", "13"), "LABELS_INVALID", "slides of 12 patients, 13 are needed"),
        (("--folds", "4", "--by-site"), "LABELS_INVALID", "slides of 3 sites, 4 are needed"),
        (("--test-share", "0.3"), "FIELD_INVALID", "--test-share has no effect"),
        (("--splits", "{made}", "--by-site"), "FIELD_INVALID", "--by-site has no effect"),
        (("--splits", "{made}", "--monte-carlo"), "FIELD_INVALID", "--monte-carlo has no effect"),
        (("--splits", "{made}", "--val", "0.2"), "FIELD_INVALID", "--val has no effect"),
        (("--splits", "{made}", "--folds", "6"), "CONFIG_INVALID", "holds 5"),
        (("--out", "{made}"), "OUTPUT_EXISTS", "not an empty folder"),
        (("--splits", "absent"), "LABELS_INVALID", "absent cannot be read"),
    ],
)
def test_what_cannot_be_done_is_refused(
    cmamil: Callable[..., Any],
    labels: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    reason: str,
    words: str,
) -> None:
    made = tmp_path / "made"
    assert cmamil("split", "--labels", labels, "--out", made).code == 0
    given = [option.format(made=made) for option in options]
    answer = cmamil("split", "--labels", labels, "--out", tmp_path / "new", *given)
    assert answer.code == 2
    assert reason in answer.err and words in answer.err
    assert not (tmp_path / "new").exists()
