"""Benchmark B, reduced: rare fine classes need the coarse level and the logit adjustment."""

from __future__ import annotations

import pytest

from cmamil_sdk.benchmarks.hierarchy import CONFIGURATIONS, hierarchy_scores, hierarchy_table

REDUCED = {"epochs": 10, "lr": 3e-3, "schedule": "onecycle", "accumulate": 8}


@pytest.mark.slow
def test_the_default_recipe_beats_the_same_network_without_a_hierarchy() -> None:
    """10 epochs instead of 40, and 40 test bags of each class instead of 100."""
    ours, flat = (
        hierarchy_scores(2, {**CONFIGURATIONS[name], **REDUCED}, test_per_class=40)
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
    table = hierarchy_table(["ours", "flat"], seeds=range(4))
    mean = {
        name: {score: sum(values) / len(values) for score, values in scores.items()}
        for name, scores in table.items()
    }
    assert mean["ours"]["balanced_accuracy"] >= 0.75
    assert mean["ours"]["auc"] >= 0.97
    assert mean["ours"]["parent_accuracy"] >= 0.945
    assert mean["ours"]["balanced_accuracy"] >= mean["flat"]["balanced_accuracy"] + 0.05
