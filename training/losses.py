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


def bag_alignment(fine_logits: Tensor, coarse_target: Tensor, parents: Tensor) -> Tensor:
    """How far the fine answer strays from the true coarse class.

    Mean over slides of ``-log`` of the probability that ``softmax(fine_logits)`` gives to all
    children of the coarse truth.

    Args:
        fine_logits: ``[B, Cf]``.
        coarse_target: ``[B]`` int64.
        parents: ``[Cf]`` int64, the coarse class of each fine class.
    """
    strangers = parents[None, :] != coarse_target[:, None]
    inside = fine_logits.masked_fill(strangers, -math.inf).logsumexp(dim=1)
    return (fine_logits.logsumexp(dim=1) - inside).mean()


def bag_alignment_as_coded(fine_logits: Tensor, coarse_target: Tensor, parents: Tensor) -> Tensor:
    """The published bag alignment: the cross-entropy takes the summed probabilities for logits.

    This second softmax keeps the loss within ``[ln(1 + (Cc - 1) / e), ln(e + Cc - 1)]``, whatever
    the answer. Arguments as :func:`bag_alignment`.
    """
    gathered = torch.softmax(fine_logits, dim=1) @ _membership(parents, fine_logits)
    return F.cross_entropy(gathered, coarse_target)


def instance_alignment(
    coarse_attention: Tensor, fine_attention: Tensor, label: int, parents: Tensor
) -> Tensor:
    """``1 - cos`` of the true fine class's attention map and its parent's, over the tiles.

    Args:
        coarse_attention: ``[Cc, n]``, rows sum to 1.
        fine_attention: ``[Cf, n]``, rows sum to 1.
        label: true fine class of the slide.
        parents: ``[Cf]`` int64.
    """
    own, parent = fine_attention[label], coarse_attention[parents[label]]
    return 1.0 - F.cosine_similarity(own, parent, dim=0)


def instance_alignment_as_coded(
    coarse_attention: Tensor, fine_attention: Tensor, parents: Tensor
) -> Tensor:
    """The published instance alignment: ``1 - cos`` over coarse classes, tile by tile, averaged.

    Children's attention is summed per coarse class. Attention is about 1/n, so in large bags most
    tiles fall below the cosine's guard of 1e-8 and cost 1 even where the maps are equal.
    """
    gathered = _membership(parents, fine_attention).transpose(0, 1) @ fine_attention
    return (1.0 - F.cosine_similarity(coarse_attention, gathered, dim=0)).mean()


def supervised_contrast(embedding: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of Khosla et al. 2020, one vector per slide.

    Mean over the slides that have another one of their label; 0 if none has.

    Args:
        embedding: ``[B, d]``, rows of length 1.
        target: ``[B]`` int64.
        temperature: also the loss's own scale.
    """
    itself = torch.eye(len(target), dtype=torch.bool, device=target.device)
    positive = (target[:, None] == target[None, :]) & ~itself
    anchors = positive.any(dim=1)
    if not bool(anchors.any()):
        return embedding.sum() * 0.0
    similarity = embedding @ embedding.transpose(0, 1) / temperature
    log_sum = similarity.masked_fill(itself, -math.inf).logsumexp(dim=1, keepdim=True)
    cost = (log_sum - similarity).masked_fill(~positive, 0.0).sum(dim=1)
    return (cost[anchors] / positive.sum(dim=1)[anchors]).mean()


def supervised_contrast_as_coded(
    views: Tensor, target: Tensor, temperature: float, base_temperature: float = 0.1
) -> Tensor:
    """The published contrastive loss: all class rows of a slide are views of it.

    With ``s = z z^T / t`` less its row maximum, an anchor costs ``-(t / base) * sum over positives
    of (s - log(sum over others of exp(s) + 1e-6)) / (positives + 1e-6)``; mean over all rows.

    Args:
        views: ``[B, V, d]``, rows of length 1.
        target: ``[B]`` int64.
        temperature: t.
        base_temperature: base.
    """
    n_views = views.shape[1]
    rows, labels = views.flatten(0, 1), target.repeat_interleave(n_views)
    others = 1.0 - torch.eye(len(labels), dtype=rows.dtype, device=rows.device)
    positive = (labels[:, None] == labels[None, :]).to(rows.dtype) * others
    scores = rows @ rows.transpose(0, 1) / temperature
    scores = scores - scores.amax(dim=1, keepdim=True).detach()
    log_share = scores - torch.log((scores.exp() * others).sum(dim=1, keepdim=True) + 1e-6)
    mean_share = (positive * log_share).sum(dim=1) / (positive.sum(dim=1) + 1e-6)
    return -(temperature / base_temperature) * mean_share.mean()


def log_prior(counts: Tensor) -> Tensor:
    """Logarithm ``[C]`` of each class's share in ``counts [C]``; an absent class counts as one.

    Added to the logits in training and left out in prediction, it asks for the answer that would
    be right if all classes were equally frequent (Menon et al. 2021).
    """
    present = counts.clamp(min=1.0)
    return torch.log(present / present.sum())


def _membership(parents: Tensor, like: Tensor) -> Tensor:
    """``[Cf, Cc]``, 1 where a fine class belongs to a coarse one."""
    return F.one_hot(parents, int(parents.max()) + 1).to(like.dtype)


__all__ = [
    "LossFunction",
    "bag_alignment",
    "bag_alignment_as_coded",
    "bag_loss_function",
    "cross_entropy",
    "instance_alignment",
    "instance_alignment_as_coded",
    "instance_loss",
    "instance_loss_function",
    "log_prior",
    "smooth_top1_svm",
    "supervised_contrast",
    "supervised_contrast_as_coded",
    "total_loss",
]
