"""Benchmark C: four telling tiles among many, which only concentrated pooling can find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmamil_sdk.synthetic.needle_bags import NeedleSettings, needle_bags
from cmamil_sdk.training.config import make_config

from .fitting import held_out_scores, one_scale_bag, options_of, trained
from .table import MeanTarget, Row, Table

SETTINGS: dict[str, Any] = {
    "dim": 32,
    "drop_out": 0.25,
    "inst_loss": "none",
    "epochs": 30,
    "lr": 2e-3,
    "weight_decay": 1e-4,
    "accumulate": 16,
}
N_TRAIN = N_TEST = 300

_REFERENCE = {"pooling": "reference", "cross_norm": "layer"}
"""The published pooling, of tiles that the published LayerNorm has made equally strong."""
_MANY = {"tiles": 600}


def needle_scores(
    options: Mapping[str, Any], seed: int, *, n_train: int = N_TRAIN, n_test: int = N_TEST
) -> list[dict[str, float]]:
    """Train once and score on held-out bags; arguments as ``conjunction_scores``."""
    settings = NeedleSettings(**options_of(options, "data"))
    base = {} if options.get("defaults") else SETTINGS
    config = make_config(**(base | options_of(options, "training")))
    train, test = (
        [
            one_scale_bag("", bag.label, bag.features)
            for bag in needle_bags(n, start + seed, settings)
        ]
        for n, start in ((n_train, 100), (n_test, 900))
    )
    return [held_out_scores(trained(config, train, seed), test, config)]


TABLE = Table(
    name="needle",
    title="C: needle bags, held-out bags",
    score=needle_scores,
    settings={"training": SETTINGS, "train_bags": N_TRAIN, "test_bags": N_TEST},
    rows={
        "attention, 40 tiles": Row({"data": {"tiles": 40}}),
        "reference, 40 tiles": Row({"data": {"tiles": 40}, "training": _REFERENCE}),
        "attention, 200 tiles": Row({}),
        "reference, 200 tiles": Row({"training": _REFERENCE}),
        "attention, LayerNorm, 200 tiles": Row({"training": {"cross_norm": "layer"}}),
        "reference, no LayerNorm, 200 tiles": Row({"training": {"pooling": "reference"}}),
        "attention, self-attention, 200 tiles": Row({"training": {"cross_attention": "global"}}),
        "reference, self-attention, 200 tiles": Row(
            {"training": _REFERENCE | {"cross_attention": "global"}}
        ),
        "attention, 200 tiles, ce tile loss": Row({"training": {"inst_loss": "ce"}}),
        "attention, 200 tiles, svm tile loss": Row({"training": {"inst_loss": "svm"}}),
        "attention, 600 tiles": Row({"data": _MANY, "training": {"epochs": 20}}),
        "reference, 600 tiles": Row({"data": _MANY, "training": {"epochs": 20} | _REFERENCE}),
        "attention, 600 tiles, 30 epochs": Row({"data": _MANY}),
        "attention, 600 tiles, 150 epochs": Row({"data": _MANY, "training": {"epochs": 150}}, 2),
        "attention, 600 tiles, default training": Row({"data": _MANY, "defaults": True}),
    },
    targets=(
        MeanTarget("attention, 200 tiles", "auc", least=0.88),
        MeanTarget("reference, 200 tiles", "auc", most=0.70),
        MeanTarget(
            "attention, 200 tiles", "auc", least=0.05, over="reference, no LayerNorm, 200 tiles"
        ),
        MeanTarget(
            "attention, LayerNorm, 200 tiles", "auc", least=0.05, over="reference, 200 tiles"
        ),
        MeanTarget("attention, 600 tiles", "auc", least=0.85, aim=0.90),
        MeanTarget("attention, 600 tiles, default training", "auc", least=0.85, aim=0.90),
    ),
)

__all__ = ["N_TEST", "N_TRAIN", "SETTINGS", "TABLE", "needle_scores"]
