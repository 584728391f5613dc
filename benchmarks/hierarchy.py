"""Benchmark B: how well HMIL's recipes learn rare fine classes (docs/hmil.md has the results)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cmamil_sdk.models.build import build_model
from cmamil_sdk.synthetic.hierarchy_bags import (
    PARENTS,
    RARE,
    TRAIN_COUNTS,
    HierarchyBag,
    hierarchy_bags,
)
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import fit, predict_levels
from cmamil_sdk.training.metrics import macro_auc, softmax
from cmamil_sdk.training.recipes import recipe_of

_FLAT: dict[str, Any] = {
    "coarse_weight": 0.0,
    "bag_align_weight": 0.0,
    "inst_align_weight": 0.0,
    "logit_adjust": 0.0,
}
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "flat": _FLAT,
    "paper": {"recipe": "paper", "head": "per_class"},
    "repo": {"recipe": "repo", "head": "per_class"},
    "ours, shared head": {"head": "shared"},
    "ours, no logit adjustment": {"logit_adjust": 0.0},
    "ours, no bag alignment": {"bag_align_weight": 0.0},
    "ours, no instance alignment": {"inst_align_weight": 0.0},
    "ours with contrast": {"contrast_weight": 1.0},
    "flat with logit adjustment": _FLAT | {"logit_adjust": 1.0},
}
"""Training options of each row of the table."""
_SETTINGS: dict[str, Any] = {
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "accumulate": 16,
    "drop_out": 0.25,
}
_SCALE = "20x"
_WIDTH = 64


def hierarchy_table(
    names: Sequence[str], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Scores of each named configuration for each seed, as :func:`hierarchy_scores` names them."""
    table: dict[str, dict[str, list[float]]] = {}
    for name in names:
        rows = [hierarchy_scores(seed, CONFIGURATIONS[name]) for seed in seeds]
        table[name] = {score: [row[score] for row in rows] for score in rows[0]}
    return table


def hierarchy_scores(
    seed: int, options: Mapping[str, Any], *, test_per_class: int = 100
) -> dict[str, float]:
    """Train once and score on held-out bags; ``options`` change the benchmark's settings.

    Returns:
        ``balanced_accuracy``, ``rare_recall`` (mean recall of the rare classes), ``auc`` (macro),
        ``parent_accuracy`` (of the fine answer's parent) and ``coarse_accuracy``.
    """
    train = _bags(TRAIN_COUNTS, 1000 + seed)
    test = _bags([test_per_class] * len(TRAIN_COUNTS), 5000 + seed)
    config = make_config(
        model="hmil",
        hierarchy={f"fine {fine}": f"coarse {coarse}" for fine, coarse in enumerate(PARENTS)},
        **(_SETTINGS | dict(options)),
    )
    torch.manual_seed(seed)
    model = build_model(
        "hmil",
        {
            "scales": [_SCALE],
            "feature_dim": _WIDTH,
            "n_classes": len(PARENTS),
            "parents": list(PARENTS),
            "dim": _WIDTH,
            "dropout": config.drop_out,
            "head": recipe_of(config).head,
            "standardize": False,
        },
    )
    fit(model, train, [], config, seed=seed)
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
    return scores


def _bags(counts: Sequence[int], seed: int) -> list[TrainingBag]:
    return [_training_bag(*item) for item in enumerate(hierarchy_bags(counts, seed))]


def _training_bag(position: int, bag: HierarchyBag) -> TrainingBag:
    features = {_SCALE: torch.from_numpy(bag.features)}
    return TrainingBag(str(position), bag.label, features, {})


__all__ = ["CONFIGURATIONS", "hierarchy_scores", "hierarchy_table"]
