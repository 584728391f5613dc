"""HMIL: class-wise attention at two levels of labels, coarse and fine.

The published model with its defects repaired: each class has a weight vector of its own
(``head="shared"`` keeps one for all), bags of one tile work, the forward runs once and never sees a
label, and any number of scales may be read. On one scale the network is the published one; where
tiles attend to each other, CMA-MIL's adaptors and cross-magnification attention stand in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.attention import GatedAttention, linear_after
from cmamil_sdk.models.multiscale import CrossAttentionKind, MultiScaleMIL, NormKind
from cmamil_sdk.models.output import CoarseOutput, MILOutput
from cmamil_sdk.models.precision import at_least_float32

HeadKind = Literal["per_class", "shared"]

_LEAST_FINE_HIDDEN = 32


class HMIL(MultiScaleMIL):
    """HMIL over ``scales``, ordered coarse to fine.

    Tiles ``x`` of width W (``dim`` behind the adaptors that several scales have, or one with "global"
    attention; else E) become
    ``h1 = W2 ReLU(W1 x)`` of width W, which the coarse level reads, and ``h2 = W3 h1`` of width
    ``dim``, which the fine level reads. At each level every class has its own gated attention map;
    a class's logit is its head on what it sees. Both levels fuse scales by a learned softmax.

    The published settings, one scale, D = 1024, parents of BRACS and ``head="shared"``, have
    1,348,172 parameters.

    Args:
        scales: names, coarse to fine, each once.
        feature_dim: width D of the tile features.
        n_classes: number of fine classes Cf, at least 2.
        parents: ``[Cf]``, the coarse class of each fine class, all of 0..Cc-1, Cc at least 2.
        embed_dim: width E of a projection shared by the scales, in front of all else; None: none, E
            is D.
        dim: width of the fine embeddings and of the bottleneck.
        coarse_hidden: width of the coarse gated attention; None: ``dim``.
        fine_hidden: width of the fine gated attention; None: a quarter of ``dim``, but at least
            32, or ``dim`` if that is less.
        dropout: rate after the bottleneck's ReLU (published: 0).
        head: "per_class", or "shared" as published.
        cross_attention: "nested", "global", "nested-bias" or "none".
        cross_norm: what follows the cross attention, or stands in its place: "none" or "layer".
        standardize: standardise features inside the model, per scale.

    Raises:
        ConfigInvalid: an argument is out of range.
    """

    kind: ClassVar[str] = "hmil"
    title: ClassVar[str] = "HMIL"

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        parents: Sequence[int],
        *,
        embed_dim: int | None = None,
        dim: int = 256,
        coarse_hidden: int | None = None,
        fine_hidden: int | None = None,
        dropout: float = 0.0,
        head: HeadKind = "per_class",
        cross_attention: CrossAttentionKind = "nested",
        cross_norm: NormKind = "none",
        standardize: bool = True,
    ) -> None:
        super().__init__(
            scales,
            feature_dim,
            n_classes,
            embed_dim=embed_dim,
            dim=dim,
            dropout=dropout,
            cross_attention=cross_attention,
            cross_norm=cross_norm,
            standardize=standardize,
            adapt=len(scales) > 1 or cross_attention == "global",
        )
        self._check_choice("head", head, get_args(HeadKind))
        _check_parents(parents, n_classes)
        self.parents = tuple(parents)
        n_coarse = max(parents) + 1
        self.n_coarse = n_coarse
        self.coarse_hidden = dim if coarse_hidden is None else coarse_hidden
        self.fine_hidden = (
            min(dim, max(_LEAST_FINE_HIDDEN, dim // 4)) if fine_hidden is None else fine_hidden
        )
        if min(self.coarse_hidden, self.fine_hidden) < 1:
            raise ConfigInvalid("HMIL: coarse_hidden and fine_hidden must be at least 1.")
        self.head: HeadKind = head
        width = self.width
        self.trunk = nn.Sequential(
            nn.Linear(width, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, width)
        )
        self.refine = nn.Linear(width, dim)
        n_scales = len(self.scales)
        self.coarse = _Level(width, self.coarse_hidden, n_coarse, n_scales, head)
        self.fine = _Level(dim, self.fine_hidden, n_classes, n_scales, head)
        for part in (self.trunk, self.refine, self.coarse, self.fine):
            part.apply(_initialise)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that make this model again."""
        return {
            "scales": list(self.scales),
            "feature_dim": self.feature_dim,
            "n_classes": self.n_classes,
            "parents": list(self.parents),
            "embed_dim": self.embed_dim,
            "dim": self.dim,
            "coarse_hidden": self.coarse_hidden,
            "fine_hidden": self.fine_hidden,
            "dropout": self.dropout,
            "head": self.head,
            "cross_attention": self.cross_attention,
            "cross_norm": self.cross_norm,
            "standardize": self.standardize,
        }

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.look_around(features, index)
        narrow = {name: self.trunk[:-1](x) for name, x in zip(self.scales, tiles, strict=True)}
        # nothing reads h1 but linear layers, so it is never made: it is D wide
        widen = cast(nn.Linear, self.trunk[-1])
        online = {name: linear_after(self.refine, widen, x) for name, x in narrow.items()}
        coarse, fine = self.coarse(narrow, widen), self.fine(online)
        seen = [
            weight * (fine.attention[name] @ at_least_float32(online[name]))
            for weight, name in zip(fine.scale_weights, self.scales, strict=True)
        ]
        return MILOutput(
            logits=fine.logits,
            bias=fine.bias,
            attention=fine.attention,
            contribution=fine.contribution,
            embedding=online,
            scale_weights=fine.scale_weights,
            scale_logits=fine.scale_logits,
            class_embedding=F.normalize(torch.stack(seen).sum(dim=0), dim=-1),
            coarse=CoarseOutput(
                logits=coarse.logits,
                bias=coarse.bias,
                attention=coarse.attention,
                contribution=coarse.contribution,
            ),
        )


@dataclass(frozen=True)
class _Answer:
    """What one level says."""

    logits: Tensor
    bias: Tensor
    attention: dict[str, Tensor]
    contribution: dict[str, Tensor]
    scale_weights: Tensor
    scale_logits: Tensor


class _Level(nn.Module):
    """One level of labels: an attention map per class, and a head on what each class sees."""

    def __init__(
        self, width: int, hidden: int, n_classes: int, n_scales: int, head: HeadKind
    ) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.attention = GatedAttention(width, hidden, dropout=0.0, heads=n_classes)
        self.head = nn.Linear(width, n_classes if head == "per_class" else 1)
        self.fusion = nn.Parameter(torch.ones(n_scales)) if n_scales > 1 else None

    def forward(self, tiles: Mapping[str, Tensor], before: nn.Linear | None = None) -> _Answer:
        """Tile embeddings ``[n, width]`` per scale -> the answer of this level.

        With ``before`` the embeddings are what that layer makes of the given tiles.
        """
        bias = self.head.bias[None, :].expand(1, self.n_classes)
        fusion = bias.new_ones(1) if self.fusion is None else torch.softmax(self.fusion, dim=0)
        attention, contribution, scale_logits = {}, {}, []
        for position, (name, embedding) in enumerate(tiles.items()):
            attention[name] = torch.softmax(
                at_least_float32(self.attention(embedding, before)), dim=-1
            )
            scores = at_least_float32(linear_after(self.head, before, embedding)) - self.head.bias
            share = attention[name].transpose(0, 1) * scores
            contribution[name] = fusion[position] * share
            scale_logits.append(share.sum(dim=0, keepdim=True))
        stacked = torch.cat(scale_logits, dim=0)
        return _Answer(
            logits=fusion[None, :] @ stacked + bias,
            bias=bias,
            attention=attention,
            contribution=contribution,
            scale_weights=fusion,
            scale_logits=stacked,
        )


def _initialise(module: nn.Module) -> None:
    """As published: Kaiming-normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)


def _check_parents(parents: Sequence[int], n_classes: int) -> None:
    if len(parents) != n_classes or len(set(parents)) < 2:
        raise ConfigInvalid(
            f"HMIL: parents {list(parents)} must give each of {n_classes} classes one of at least "
            "two coarse classes."
        )
    if set(parents) != set(range(max(parents) + 1)):
        raise ConfigInvalid(
            f"HMIL: parents {list(parents)} must use every coarse class from 0 to the largest."
        )


__all__ = ["HMIL", "HeadKind"]
