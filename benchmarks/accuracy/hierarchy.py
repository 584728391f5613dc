"""Benchmark B: how well HMIL's recipes learn rare fine classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmamil_sdk.synthetic.hierarchy_bags import PARENTS, RARE, TRAIN_COUNTS, hierarchy_bags
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import predict_levels
from cmamil_sdk.training.metrics import macro_auc, softmax

from .fitting import one_scale_bag, options_of, trained
from .table import MeanTarget, Row, Table

SETTINGS: dict[str, Any] = {
    "model": "hmil",
    "dim": 64,
    "drop_out": 0.25,
    "standardize": False,
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "accumulate": 16,
}
TEST_PER_CLASS = 100

_FLAT: dict[str, Any] = {
    "coarse_weight": 0.0,
    "bag_align_weight": 0.0,
    "inst_align_weight": 0.0,
    "logit_adjust": 0.0,
}
_HIERARCHY = {f"fine {fine}": f"coarse {coarse}" for fine, coarse in enumerate(PARENTS)}


def hierarchy_scores(
    options: Mapping[str, Any], seed: int, *, test_per_class: int = TEST_PER_CLASS
) -> list[dict[str, float]]:
    """Train once and score on held-out bags; ``options`` as ``conjunction_scores``.

    Returns:
        ``balanced_accuracy``, ``rare_recall`` (mean recall of the rare classes), ``auc`` (macro),
        ``parent_accuracy`` (of the fine answer's parent) and ``coarse_accuracy``.
    """
    train = _bags(TRAIN_COUNTS, 1000 + seed)
    test = _bags([test_per_class] * len(TRAIN_COUNTS), 5000 + seed)
    config = make_config(hierarchy=_HIERARCHY, **(SETTINGS | options_of(options, "training")))
    model = trained(config, train, seed, parents=PARENTS)
    levels = predict_levels(model, test, config)
    labels, parents = np.array([bag.label for bag in test]), np.array(PARENTS)
    answers = levels.fine.argmax(axis=1)
    recall = np.array([np.mean(answers[labels == c] == c) for c in range(len(PARENTS))])
    scores = {
        "balanced_accuracy": float(recall.mean()),
        "rare_recall": float(recall[list(RARE)].mean()),
        "auc": macro_auc(softmax(levels.fine), labels),
        "parent_accuracy": float(np.mean(parents[answers] == parents[labels])),
    }
    if levels.coarse is not None:
        hits = levels.coarse.argmax(axis=1) == parents[labels]
        scores["coarse_accuracy"] = float(np.mean(hits))
    return [scores]


def _bags(counts: Sequence[int], seed: int) -> list[TrainingBag]:
    return [one_scale_bag("", bag.label, bag.features) for bag in hierarchy_bags(counts, seed)]


def _row(**training: Any) -> Row:
    return Row({"training": training}, seeds=4)


TABLE = Table(
    name="hierarchy",
    title="B: hierarchy with rare fine classes, held-out bags",
    score=hierarchy_scores,
    settings={"training": SETTINGS, "train_bags": sum(TRAIN_COUNTS), "test_bags": 700},
    rows={
        "ours": _row(),
        "flat": _row(**_FLAT),
        "paper": _row(recipe="paper", head="per_class"),
        "repo": _row(recipe="repo", head="per_class"),
        "ours, shared head": _row(head="shared"),
        "flat, shared head": _row(head="shared", **_FLAT),
        "paper, shared head": _row(recipe="paper"),
        "repo, shared head": _row(recipe="repo"),
        "ours, no logit adjustment": _row(logit_adjust=0.0),
        "flat with logit adjustment": _row(**_FLAT | {"logit_adjust": 1.0}),
        "ours, no coarse loss": _row(coarse_weight=0.0),
        "ours, no bag alignment": _row(bag_align_weight=0.0),
        "ours, no instance alignment": _row(inst_align_weight=0.0),
        "ours with contrast": _row(contrast_weight=1.0),
        "ours, dropout .2": _row(drop_out=0.2),
    },
    targets=(
        MeanTarget("ours", "balanced_accuracy", least=0.75, aim=0.80),
        MeanTarget("ours", "auc", least=0.97, aim=0.985),
        MeanTarget("ours", "parent_accuracy", least=0.945, aim=0.96),
        MeanTarget("ours", "balanced_accuracy", least=0.05, over="flat"),
    ),
)

__all__ = ["SETTINGS", "TABLE", "TEST_PER_CLASS", "hierarchy_scores"]
