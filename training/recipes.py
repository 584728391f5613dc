"""HMIL's recipes: which form each loss has, how much it weighs, and how that changes in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .config import TrainConfig

CONTRAST_TEMPERATURE = 0.1


def alpha(epoch: int, epochs: int) -> float:
    """The published code's curriculum, ``1 - (e / T)^2`` for epoch e of T, counted from 0."""
    return 1.0 - (epoch / epochs) ** 2


def beta(epoch: int, epochs: int) -> float:
    """The paper's curriculum, ``1 - e / T`` for epoch e of T, counted from 0."""
    return 1.0 - epoch / epochs


def tau(epoch: int, epochs: int) -> float:
    """The published code's temperature, from 1 down to 0.1 at half time and back."""
    return 0.1 + 0.45 * (1.0 + math.cos(2.0 * math.pi * epoch / epochs))


@dataclass(frozen=True)
class Weights:
    """Factors of the five losses."""

    fine: float = 1.0
    coarse: float = 1.0
    bag_align: float = 1.0
    inst_align: float = 1.0
    contrast: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A way to train HMIL.

    ``ours``: repaired losses, constant weights, no contrast, logit adjustment, a head per class.
    ``paper``: published forms, ``beta * (coarse + alignments) + (1 - beta) * contrast + fine``.
    ``repo``: published forms as the code runs them, ``alpha * coarse + fine + bag alignment +
    (1 - alpha) * contrast``, with a swinging temperature; the instance alignment is never added.

    Attributes:
        head: "per_class" or "shared".
        weights: before the schedule.
        logit_adjust: share of the log class frequencies in the training logits.
        as_coded: whether alignments and contrast have their published forms.
        schedule: "constant", "paper" or "repo".
    """

    head: Literal["per_class", "shared"]
    weights: Weights
    logit_adjust: float
    as_coded: bool
    schedule: Literal["constant", "paper", "repo"]

    @property
    def contrast_per_bag(self) -> bool:
        """Whether the contrast is divided by the number of slides once more, as the code does."""
        return self.schedule == "repo"

    def weights_at(self, epoch: int, epochs: int) -> Weights:
        """The weights in ``epoch``, counted from 0, of ``epochs``."""
        w = self.weights
        if self.schedule == "paper":
            share = beta(epoch, epochs)
            return Weights(
                fine=w.fine,
                coarse=share * w.coarse,
                bag_align=share * w.bag_align,
                inst_align=share * w.inst_align,
                contrast=(1.0 - share) * w.contrast,
            )
        if self.schedule == "repo":
            share = alpha(epoch, epochs)
            return replace(w, coarse=share * w.coarse, contrast=(1.0 - share) * w.contrast)
        return w

    def temperature_at(self, epoch: int, epochs: int) -> float:
        """The contrast's temperature in ``epoch``, counted from 0, of ``epochs``."""
        return tau(epoch, epochs) if self.schedule == "repo" else CONTRAST_TEMPERATURE


RECIPES = {
    "ours": Recipe(
        "per_class", Weights(bag_align=0.5, inst_align=4.0, contrast=0.0), 1.0, False, "constant"
    ),
    "paper": Recipe("shared", Weights(), 0.0, True, "paper"),
    "repo": Recipe("shared", Weights(inst_align=0.0), 0.0, True, "repo"),
}


def recipe_of(config: TrainConfig) -> Recipe:
    """The recipe that ``config`` names, with what it changes."""
    recipe = RECIPES[config.recipe]

    # balanced draws have no class frequencies left to adjust for
    logit_adjust = 0.0 if config.sampling == "balanced" else recipe.logit_adjust

    def chosen(wanted: float | None, default: float) -> float:
        return default if wanted is None else wanted

    return replace(
        recipe,
        head=config.head or recipe.head,
        weights=Weights(
            fine=config.fine_weight,
            coarse=chosen(config.coarse_weight, recipe.weights.coarse),
            bag_align=chosen(config.bag_align_weight, recipe.weights.bag_align),
            inst_align=chosen(config.inst_align_weight, recipe.weights.inst_align),
            contrast=chosen(config.contrast_weight, recipe.weights.contrast),
        ),
        logit_adjust=chosen(config.logit_adjust, logit_adjust),
    )


__all__ = ["RECIPES", "Recipe", "Weights", "alpha", "beta", "recipe_of", "tau"]
