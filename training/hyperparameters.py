"""From a training configuration to the hyper-parameters of the model that it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.names import SINGLE_SCALE

from .config import TrainConfig
from .option_rules import idle_on_one_scale
from .recipes import recipe_of

_HEADS = 8
"""Of CMA-MIL where scales attend to each other: with one, its first weights may keep it from learning.

On one scale there is no such trap, and more heads only learn more by heart.
"""


def hyperparameters_of(
    config: TrainConfig,
    *,
    scales: Sequence[str],
    feature_dim: int,
    n_classes: int,
    cross_attention: str,
    parents: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Arguments of ``build_model(config.model, ...)``.

    Args:
        config: what is wanted.
        scales: of the features, coarse to fine.
        feature_dim: width of the features.
        n_classes: number of labels.
        cross_attention: what ``config.cross_attention`` means for these features.
        parents: coarse class of each label; None: no hierarchy.

    Raises:
        ConfigInvalid: a model of one scale, and several scales; an option of several, and one.
    """
    common: dict[str, Any] = {
        "scales": list(scales),
        "feature_dim": feature_dim,
        "n_classes": n_classes,
        "embed_dim": config.embed_dim,
        "dim": config.dim,
        "dropout": config.drop_out,
        "standardize": config.standardize,
    }
    if config.attention_dim is not None:
        common["attention_dim"] = config.attention_dim
    if config.model in SINGLE_SCALE:
        return _of_one_scale(common, config)
    idle = idle_on_one_scale(config)
    if len(scales) == 1 and idle is not None:
        raise ConfigInvalid(
            f"{idle} has no effect on the one scale {scales[0]}; leave it out, or train on more."
        )
    common |= {"cross_attention": cross_attention, "cross_norm": config.cross_norm}
    if parents is None:
        attend = len(scales) > 1 and cross_attention != "none"
        heads = config.heads or (_HEADS if attend else 1)
        return common | {"pooling": config.pooling, "heads": heads}
    return common | {"parents": list(parents), "head": recipe_of(config).head}


def _of_one_scale(common: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    scales = common["scales"]
    if len(scales) > 1:
        raise ConfigInvalid(
            f"Model {config.model} reads one scale, and the features have {', '.join(scales)}; "
            f"choose one with scales, such as {scales[-1]}."
        )
    return common


__all__ = ["hyperparameters_of"]
