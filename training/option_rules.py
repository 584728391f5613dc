"""Options that leave each other without effect, which are refused together.

Values are compared with defaults: a written configuration holds every option and must read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmamil_sdk.models.names import SINGLE_SCALE

from .recipes import recipe_of

if TYPE_CHECKING:
    from .config import TrainConfig

_OF_THE_TILE_LOSS = ("bag_weight", "k_sample", "subtyping")
_OF_SEVERAL_SCALES = ("scale_loss",)


def is_set(config: TrainConfig, name: str) -> bool:
    """Whether an option differs from its default."""
    return bool(getattr(config, name) != type(config).model_fields[name].default)


def why_inconsistent(config: TrainConfig) -> str | None:
    """What is wrong with the options taken together, in one sentence; None: nothing."""
    if config.model in SINGLE_SCALE and config.scales is not None and len(config.scales) > 1:
        return (
            f"model {config.model!r} reads one scale, scales names {len(config.scales)}; name one"
        )
    if config.label_smoothing > 0 and config.bag_loss != "ce":
        return "label_smoothing works with bag_loss 'ce' only; set it to 0"
    if config.patience is not None and not config.early_stopping:
        return "patience works with early_stopping only; switch that on"
    if config.early_stopping and config.val_share == 0:
        return "early_stopping needs validation slides; set val_share above 0"
    if config.schedule == "plateau" and config.val_share == 0:
        return "schedule 'plateau' needs validation slides; set val_share above 0"
    return _why_inconsistent_hmil(config) if config.model == "hmil" else _why_idle_tile_loss(config)


def idle_on_one_scale(config: TrainConfig) -> str | None:
    """The first option that is set and has no effect on a single scale; None: there is none."""
    return next((name for name in _OF_SEVERAL_SCALES if is_set(config, name)), None)


def _why_idle_tile_loss(config: TrainConfig) -> str | None:
    if config.inst_loss == "none":
        idle, cause = _OF_THE_TILE_LOSS, "inst_loss 'none', which trains without a tile loss"
    elif config.bag_weight == 1.0:
        idle, cause = ("inst_loss", *_OF_THE_TILE_LOSS[1:]), "bag_weight 1, which leaves no share"
    else:
        return None
    name = next((name for name in idle if is_set(config, name)), None)
    return None if name is None else f"{name} has no effect with {cause}; leave out one of them"


def _why_inconsistent_hmil(config: TrainConfig) -> str | None:
    if config.hierarchy is None:
        return "model 'hmil' needs a hierarchy, a file of 'label: coarse label' lines; give one"
    if config.sampling == "balanced" and config.logit_adjust:
        return (
            "logit_adjust corrects for class frequencies that sampling 'balanced' has evened "
            "out already; leave out one of them"
        )
    weights = recipe_of(config).weights
    if not any(vars(weights).values()):
        return "all weights of HMIL's losses are 0 and nothing would be trained; set one above 0"
    if weights.contrast > 0 and config.accumulate == 1:
        return (
            "contrast_weight compares the slides of a step and accumulate 1 leaves it one; set "
            "accumulate above 1, or contrast_weight to 0"
        )
    return None


__all__ = ["idle_on_one_scale", "is_set", "why_inconsistent"]
