"""Benchmark B, reduced: rare fine classes need the coarse level and the logit adjustment."""

from __future__ import annotations

import pytest

from cmamil_sdk.benchmarks.accuracy.hierarchy import TABLE, hierarchy_scores
from cmamil_sdk.benchmarks.accuracy.table import run_table

REDUCED = {"epochs": 10, "lr": 3e-3, "schedule": "onecycle", "accumulate": 8}


@pytest.mark.long
def test_the_default_recipe_beats_the_same_network_without_a_hierarchy() -> None:
    """10 epochs instead of 40, and 40 test bags of each class instead of 100."""
    (ours,), (flat,) = (
        hierarchy_scores(
            {"training": TABLE.rows[name].options["training"] | REDUCED}, 2, test_per_class=40
        )
        for name in ("ours", "flat")
    )
    assert ours["balanced_accuracy"] >= 0.70
    assert ours["balanced_accuracy"] >= flat["balanced_accuracy"] + 0.05
    assert ours["rare_recall"] >= flat["rare_recall"] + 0.2
    assert ours["auc"] >= max(0.94, flat["auc"])
    assert ours["parent_accuracy"] >= max(0.88, flat["parent_accuracy"])
    assert ours["coarse_accuracy"] >= 0.88


@pytest.mark.long
def test_the_targets_of_the_benchmark() -> None:
    document = run_table(TABLE, rows=["ours", "flat"])
    assert len(document["targets"]) == len(TABLE.targets)
    assert [verdict["target"] for verdict in document["targets"] if not verdict["met"]] == []
