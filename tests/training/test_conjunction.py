"""Benchmark A, reduced: only the spatial relation between scales decides the label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmamil_sdk.models.build import build_model
from cmamil_sdk.synthetic.bags import SCALES, SyntheticBag, conjunction_bags
from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import fit, predict_logits
from cmamil_sdk.training.metrics import macro_auc, softmax

SEED = 1


def as_training_bag(position: int, bag: SyntheticBag) -> TrainingBag:
    return TrainingBag(
        str(position),
        bag.label,
        {name: torch.from_numpy(x) for name, x in bag.features.items()},
        {name: torch.from_numpy(x) for name, x in nesting_arrays(SCALES, bag.parent).items()},
    )


def held_out_auc(cross_attention: str) -> float:
    """150 bags and 10 epochs instead of 300 and 30; the law of the bags is the benchmark's."""
    train = [as_training_bag(*item) for item in enumerate(conjunction_bags(150, 1000 + SEED))]
    test = [as_training_bag(*item) for item in enumerate(conjunction_bags(300, 5000 + SEED))]
    config = make_config(
        epochs=10, lr=2e-3, weight_decay=1e-4, schedule="onecycle", accumulate=2, inst_loss="none"
    )
    torch.manual_seed(SEED)
    model = build_model(
        "cma-mil",
        {
            "scales": ["5x", "10x", "20x"],
            "feature_dim": 16,
            "n_classes": 2,
            "dim": 64,
            "cross_attention": cross_attention,
            "standardize": False,
        },
    )
    fit(model, train, [], config, seed=SEED)
    probabilities = softmax(predict_logits(model, test, config))
    return macro_auc(probabilities, np.array([bag.label for bag in test]))


def test_nested_attention_solves_what_only_the_nested_grid_tells() -> None:
    assert held_out_auc("nested") >= 0.97


@pytest.mark.parametrize("cross_attention", ["global", "none"])
def test_attention_without_the_grid_stays_at_chance(cross_attention: str) -> None:
    assert 0.35 <= held_out_auc(cross_attention) <= 0.65
