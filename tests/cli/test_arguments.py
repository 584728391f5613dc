"""Spellings of the published tools' command lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.cli.arguments import normalise

WORDS = st.text("abcxyz0123_=./", min_size=1, max_size=8)
OPTIONS = st.builds(lambda a, b: f"--{a}_{b}", st.text("abc", min_size=1), st.text("abc"))


@pytest.mark.parametrize(
    ("given_line", "meant"),
    [
        (
            "features --patch_root patches_5x --out_dir features --batch_size 128 --num_workers 4",
            "features --patch-root patches_5x --out features --batch-size 128 --workers 4",
        ),
        (
            "train --data_root_5x data/5x --folds 5 --bag_loss ce --inst_loss svm --early_stopping",
            "train --data-root-5x data/5x --folds 5 --bag-loss ce --inst-loss svm --early-stopping",
        ),
        (
            "x --feature_directory F --label_csv L --split_csv_root S --folds 3",
            "x --features F --labels L --splits S --folds 3",
        ),
        (
            "split --feature_directory F --root D --label_csv L --split_csv_root S --folds 3",
            "split --features F --out D --labels L --splits S --folds 3",
        ),
        ("train --root D --folds 3", "train --results-dir D --folds 3"),
        ("features --slides a.svs b.svs --out o", "features --slides a.svs --slides b.svs --out o"),
        ("serve --slides_root a b c", "serve --slides-root a --slides-root b --slides-root c"),
        ("features --slides=a_b.svs --out_dir=o_o", "features --slides=a_b.svs --out=o_o"),
        ("predict a_b.svs c_d.svs --bundle b", "predict a_b.svs c_d.svs --bundle b"),
        ("features --slides a.svs -h", "features --slides a.svs -h"),
        ("predict -- --odd_name.svs", "predict -- --odd_name.svs"),
    ],
)
def test_command_lines(given_line: str, meant: str) -> None:
    assert normalise(given_line.split()) == meant.split()


@given(st.lists(WORDS | OPTIONS))
def test_normalising_twice_changes_nothing(arguments: list[str]) -> None:
    once = normalise(arguments)
    assert normalise(once) == once


@given(st.lists(WORDS | OPTIONS), st.lists(WORDS | OPTIONS))
def test_what_follows_two_hyphens_is_left_alone(before: list[str], after: list[str]) -> None:
    assert normalise([*before, "--", *after]) == [*normalise(before), "--", *after]


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_several_values_repeat_their_option(values: list[str]) -> None:
    expected = [token for value in values for token in ("--slides", value)]
    assert normalise(["--slides", *values]) == expected


@given(st.lists(WORDS))
def test_values_are_never_rewritten(values: list[str]) -> None:
    assert normalise(values) == values
