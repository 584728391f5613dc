"""Benchmark A: a finding counts only in its context, one scale up.

Without the nested grid nothing can beat chance: every scale alone, and all of them as unordered
sets, have the same law under both labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cmamil_sdk.synthetic.bags import SCALES, ConjunctionSettings, SyntheticBag, conjunction_bags
from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag

from .fitting import held_out_scores, options_of, trained
from .table import MeanTarget, Row, Table

SETTINGS: dict[str, Any] = {
    "dim": 64,
    "drop_out": 0.25,
    "inst_loss": "none",
    "epochs": 30,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "accumulate": 16,
}
N_TRAIN, N_TEST = 300, 600

_NOISY = {"noise": 0.8}
_AT_CHANCE = ("global", "late fusion", "5x alone", "10x alone", "20x alone")


def conjunction_scores(
    options: Mapping[str, Any], seed: int, *, n_train: int = N_TRAIN, n_test: int = N_TEST
) -> list[dict[str, float]]:
    """Train once and score on held-out bags.

    Args:
        options: ``data`` changes the bags' settings, ``training`` the training's; ``defaults``
            drops the benchmark's training settings in favour of the product's.
        seed: of everything.
        n_train: training bags.
        n_test: held-out bags.
    """
    settings = ConjunctionSettings(**options_of(options, "data"))
    base = {} if options.get("defaults") else SETTINGS
    config = make_config(**(base | options_of(options, "training")))
    scales = config.scales or tuple(scale.name for scale in SCALES)
    train, test = (
        [_training_bag(bag, scales) for bag in conjunction_bags(n, start + seed, settings)]
        for n, start in ((n_train, 1000), (n_test, 5000))
    )
    return [held_out_scores(trained(config, train, seed), test, config)]


def _training_bag(bag: SyntheticBag, scales: tuple[str, ...]) -> TrainingBag:
    index = nesting_arrays(SCALES, bag.parent) if len(scales) > 1 else {}
    return TrainingBag(
        "",
        bag.label,
        {name: torch.from_numpy(bag.features[name]) for name in scales},
        {name: torch.from_numpy(rows) for name, rows in index.items()},
    )


def _alone(scale: str) -> Row:
    return Row({"training": {"scales": [scale]}})


TABLE = Table(
    name="conjunction",
    title="A: multi-scale conjunction, held-out bags",
    score=conjunction_scores,
    settings={"training": SETTINGS, "train_bags": N_TRAIN, "test_bags": N_TEST},
    rows={
        "nested": Row({}),
        "nested-bias": Row({"training": {"cross_attention": "nested-bias"}}),
        "global": Row({"training": {"cross_attention": "global"}}),
        "late fusion": Row({"training": {"cross_attention": "none"}}),
        "5x alone": _alone("5x"),
        "10x alone": _alone("10x"),
        "20x alone": _alone("20x"),
        "nested, noise .8": Row({"data": _NOISY}, seeds=5),
        "nested, noise .8, one head": Row({"data": _NOISY, "training": {"heads": 1}}, seeds=5),
        "nested, noise .8, loss per scale": Row(
            {"data": _NOISY, "training": {"scale_loss": 1.0}}, seeds=5
        ),
        "nested, noise .8, LayerNorm": Row(
            {"data": _NOISY, "training": {"cross_norm": "layer"}}, seeds=5
        ),
        "nested, noise .8, default training": Row({"data": _NOISY, "defaults": True}, seeds=5),
        "nested, hosts at 10x": Row(
            {"data": {"rule": "20in10", "abnormal_min": 4, "abnormal_max": 8}}
        ),
    },
    targets=(
        MeanTarget("nested", "auc", least=0.97),
        *(MeanTarget(row, "auc", least=0.40, most=0.60) for row in _AT_CHANCE),
        MeanTarget("nested, noise .8", "auc", least=0.80, aim=0.92),
        MeanTarget("nested, noise .8, default training", "auc", least=0.80, aim=0.92),
    ),
)

__all__ = ["N_TEST", "N_TRAIN", "SETTINGS", "TABLE", "conjunction_scores"]
