"""The losses as pure functions of logits and labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = Callable[[Tensor, Tensor], Tensor]

_HARD_MARGIN = math.log(1000.0)
"""Lead of the best score over the second beyond which the smooth maximum is the maximum."""


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``logits [B, C]`` and ``target [B]`` int64.

    ``smoothing`` spreads that share of the target evenly over all classes.
    """
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def smooth_top1_svm(
    logits: Tensor, target: Tensor, temperature: float = 1.0, margin: float = 1.0
) -> Tensor:
    """Smooth top-1 SVM of Berrada et al. 2018, mean over rows of ``logits [B, C]``.

    With ``s_j = x_j + margin * [j != y] - x_y``, a row costs ``t * logsumexp(s / t)``, or
    ``max(s)`` once the two best raw scores are ``t * ln 1000`` or more apart.
    """
    wrong = torch.ones_like(logits).scatter(1, target[:, None], 0.0)
    slack = logits + margin * wrong - logits.gather(1, target[:, None])
    smooth = temperature * torch.logsumexp(slack / temperature, dim=1)
    best, second = logits.topk(2, dim=1).values.unbind(dim=1)
    hard = best - second >= temperature * _HARD_MARGIN
    return torch.where(hard, slack.amax(dim=1), smooth).mean()


def bag_loss_function(name: str, smoothing: float) -> LossFunction:
    """The slide loss called ``name`` ("ce" or "svm")."""
    if name == "svm":
        return smooth_top1_svm
    return lambda logits, target: cross_entropy(logits, target, smoothing)


def instance_loss_function(name: str) -> LossFunction:
    """The tile loss called ``name`` ("ce" or "svm")."""
    return smooth_top1_svm if name == "svm" else cross_entropy


def instance_loss(
    rank: Tensor,
    instance_logits: Tensor,
    label: int,
    k: int,
    *,
    subtyping: bool,
    loss: LossFunction,
) -> Tensor:
    """Tile supervision by the model's own ranking, for one scale of one slide.

    The ``kk = min(k, n // 2)`` tiles that speak most for the true class are taught "yes" by that
    class's tile classifier and the kk last ones "no"; with ``subtyping`` the other classes'
    classifiers are taught "no" on the kk tiles that speak most for them. A single tile has no two
    ends: the loss is 0.

    Args:
        rank: ``[n, C]``, how much each tile speaks for each class; only the order counts.
        instance_logits: ``[n, C, 2]`` of the C tile classifiers.
        label: true class of the slide.
        k: tiles at each end.
        subtyping: whether the other classes' classifiers learn as well.
        loss: on ``[m, 2]`` logits and ``[m]`` targets.

    Returns:
        Scalar, the sum over the classifiers that learn.
    """
    kk = min(k, rank.shape[0] // 2)
    if kk == 0:
        return instance_logits.new_zeros(())
    # one stable sort: top and bottom cannot share a tile even where ranks are equal
    order = rank.detach().argsort(dim=0, descending=True, stable=True)
    ends = torch.cat([order[:kk, label], order[-kk:, label]])
    target = torch.cat([order.new_ones(kk), order.new_zeros(kk)])
    total = loss(instance_logits[ends, label], target)
    if subtyping:
        for other in range(rank.shape[1]):
            if other != label:
                top = order[:kk, other]
                total = total + loss(instance_logits[top, other], torch.zeros_like(top))
    return total


def total_loss(
    bag: Tensor,
    instance: Tensor | None,
    per_scale: Tensor | None,
    *,
    bag_weight: float,
    scale_weight: float,
) -> Tensor:
    """``w * bag + (1 - w) * instance + scale_weight * per_scale``; without instance: w is 1."""
    total = bag if instance is None else bag_weight * bag + (1.0 - bag_weight) * instance
    return total if per_scale is None else total + scale_weight * per_scale


__all__ = [
    "LossFunction",
    "bag_loss_function",
    "cross_entropy",
    "instance_loss",
    "instance_loss_function",
    "smooth_top1_svm",
    "total_loss",
]
