"""Benchmark B: how well HMIL's recipes learn rare fine classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.synthetic.hierarchy_bags import PARENTS, RARE, TRAIN_COUNTS, hierarchy_bags
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import predict_levels
from cmamil_sdk.training.metrics import macro_auc, softmax
from cmamil_sdk.training.recipes import recipe_of

from .fitting import one_scale_bag, options_of, trained
from .table import MeanTarget, Row, Table

SETTINGS: dict[str, Any] = {
    "dim": 64,
    "drop_out": 0.25,
    "standardize": False,
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "accumulate": 16,
}
TEST_PER_CLASS = 100
_SMALL = {"train_counts": (12, 12, 4, 12, 4, 12, 4)}

_FLAT: dict[str, Any] = {
    "coarse_weight": 0.0,
    "bag_align_weight": 0.0,
    "inst_align_weight": 0.0,
    "logit_adjust": 0.0,
}
_PARENT_OF = {f"fine {fine}": f"coarse {coarse}" for fine, coarse in enumerate(PARENTS)}
_HIERARCHY = Hierarchy.of(tuple(_PARENT_OF), _PARENT_OF)


def hierarchy_scores(
    options: Mapping[str, Any], seed: int, *, test_per_class: int = TEST_PER_CLASS
) -> list[dict[str, float]]:
    """Train once and score on held-out bags.

    Args:
        options: as ``conjunction_scores``; ``data`` may have other ``train_counts``.
        seed: of everything.
        test_per_class: held-out bags of each fine class.

    Returns:
        ``balanced_accuracy``, ``rare_recall`` (mean recall of the rare classes), ``auc`` (macro),
        ``parent_accuracy`` (of the fine answer's parent), ``summed_accuracy`` (of the coarse class
        whose fine probabilities have the largest sum) and ``coarse_accuracy`` (of the coarse answer).
    """
    counts = options_of(options, "data").get("train_counts", TRAIN_COUNTS)
    train = _bags(counts, 1000 + seed)
    test = _bags([test_per_class] * len(TRAIN_COUNTS), 5000 + seed)
    base = {} if options.get("defaults") else SETTINGS
    settings = base | options_of(options, "training")
    config = make_config(model="hmil", hierarchy=_PARENT_OF, **settings)
    model = trained(config, train, seed, parents=PARENTS)
    levels = predict_levels(model, test, config)
    labels, parents = np.array([bag.label for bag in test]), np.array(PARENTS)
    probabilities = softmax(levels.fine)
    answers, summed = levels.fine.argmax(axis=1), _HIERARCHY.summed(probabilities).argmax(axis=1)
    own = levels.coarse if recipe_of(config).weights.coarse > 0 else None
    recall = np.array([np.mean(answers[labels == c] == c) for c in range(len(PARENTS))])
    found = {
        "parent": parents[answers],
        "summed": summed,
        "coarse": summed if own is None else own.argmax(axis=1),
    }
    return [
        {
            "balanced_accuracy": float(recall.mean()),
            "rare_recall": float(recall[list(RARE)].mean()),
            "auc": macro_auc(probabilities, labels),
        }
        | {f"{n}_accuracy": float(np.mean(a == parents[labels])) for n, a in found.items()}
    ]


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
        "ours, all weights 1": _row(bag_align_weight=1.0, inst_align_weight=1.0),
        "ours, no bag alignment": _row(bag_align_weight=0.0),
        "ours, no instance alignment": _row(inst_align_weight=0.0),
        "ours, balanced steps": _row(sampling="balanced"),
        "ours with contrast": _row(contrast_weight=1.0),
        "ours with contrast, balanced steps": _row(contrast_weight=1.0, sampling="balanced"),
        "ours, dropout .2": _row(drop_out=0.2),
        "ours, standardised": _row(standardize=True),
        "ours, default training": Row({"defaults": True}, seeds=2),
        "60 bags, default training": Row({"defaults": True, "data": _SMALL}, seeds=2),
        "60 bags, default training, one step an epoch": Row(
            {"defaults": True, "data": _SMALL, "training": {"accumulate": 64}}, seeds=2
        ),
    },
    targets=(
        MeanTarget("ours", "balanced_accuracy", least=0.75, aim=0.80),
        MeanTarget("ours", "auc", least=0.97, aim=0.985),
        MeanTarget("ours", "parent_accuracy", least=0.945, aim=0.96),
        MeanTarget("ours", "balanced_accuracy", least=0.05, over="flat"),
    ),
)

__all__ = ["SETTINGS", "TABLE", "TEST_PER_CLASS", "hierarchy_scores"]
