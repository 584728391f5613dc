"""Benchmark A, reduced: only the spatial relation between scales decides the label."""

from __future__ import annotations

import pytest

from cmamil_sdk.benchmarks.accuracy.conjunction import TABLE, conjunction_scores
from cmamil_sdk.benchmarks.accuracy.table import run_table

REDUCED = {"epochs": 10, "lr": 2e-3, "schedule": "onecycle", "accumulate": 2}
SEED = 1


def held_out_auc(row: str) -> float:
    """150 bags and 10 epochs instead of 300 and 30; the law of the bags is the benchmark's."""
    options = TABLE.rows[row].options
    reduced = {**options, "training": options.get("training", {}) | REDUCED}
    (scores,) = conjunction_scores(reduced, SEED, n_train=150, n_test=300)
    return scores["auc"]


@pytest.mark.slow
def test_nested_attention_solves_what_only_the_nested_grid_tells() -> None:
    assert held_out_auc("nested") >= 0.97


@pytest.mark.parametrize("row", ["global", "late fusion"])
def test_attention_without_the_grid_stays_at_chance(row: str) -> None:
    assert 0.35 <= held_out_auc(row) <= 0.65


@pytest.mark.long
def test_the_targets_of_the_benchmark() -> None:
    rows = sorted({row for target in TABLE.targets for row in target.rows})
    document = run_table(TABLE, rows=rows)
    assert len(document["targets"]) == len(TABLE.targets)
    assert [verdict["target"] for verdict in document["targets"] if not verdict["met"]] == []
