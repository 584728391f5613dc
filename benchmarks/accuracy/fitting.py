"""What all accuracy benchmarks do with their bags: build, fit, answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import build_model
from cmamil_sdk.training.config import TrainConfig
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import fit, predict_logits
from cmamil_sdk.training.hyperparameters import hyperparameters_of
from cmamil_sdk.training.metrics import macro_auc, softmax
from cmamil_sdk.training.runtime import reproducible


def one_scale_bag(slide: str, label: int, features: npt.NDArray[np.float32]) -> TrainingBag:
    """A bag of ``[n, D]`` tiles of the scale 20x."""
    return TrainingBag(slide, label, {"20x": torch.from_numpy(features)}, {})


def trained(
    config: TrainConfig,
    train: Sequence[TrainingBag],
    seed: int,
    *,
    parents: Sequence[int] | None = None,
) -> MILModel:
    """A model fitted on ``train`` without validation: the last epoch is kept.

    Cross attention is nested where the configuration does not say; ``parents`` as in
    ``hyperparameters_of``.
    """
    features = train[0].features
    hyperparameters = hyperparameters_of(
        config,
        scales=tuple(features),
        feature_dim=next(iter(features.values())).shape[1],
        n_classes=max(bag.label for bag in train) + 1,
        cross_attention=config.cross_attention or "nested",
        parents=parents,
    )
    with reproducible(seed, config.threads):
        model = build_model(config.model, hyperparameters)
    fit(model, train, [], config, seed=seed)
    return model


def held_out_scores(
    model: MILModel, test: Sequence[TrainingBag], config: TrainConfig
) -> dict[str, float]:
    """``auc`` (macro) and ``accuracy`` on bags that the model has not seen."""
    logits = predict_logits(model, test, config)
    labels = np.array([bag.label for bag in test])
    return {
        "auc": macro_auc(softmax(logits), labels),
        "accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
    }


def options_of(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The ``data`` or ``training`` part of a row's options; empty if it has none."""
    return dict(options.get(part, {}))


__all__ = ["held_out_scores", "one_scale_bag", "options_of", "trained"]
