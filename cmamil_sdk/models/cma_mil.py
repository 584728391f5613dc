"""CMA-MIL: cross-magnification attention, shared gated attention pooling, learned fusion.

The published model with its defects repaired: the pooling weights are the softmax itself
(``pooling="reference"`` keeps ``exp(softmax)`` for comparison), ``forward`` never sees a label, any
number of scales from one, cross attention may follow the nested grid, and no LayerNorm follows it
(``cross_norm="layer"`` keeps that).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cmamil_sdk.models.attention import GatedAttention
from cmamil_sdk.models.multiscale import CrossAttentionKind, MultiScaleMIL, NormKind
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.models.precision import at_least_float32

PoolingKind = Literal["attention", "reference"]

_FIRST_SCORES = 4.0
"""How much larger scores start than by torch's initialisation, where scales attend to each other.

That one makes attention so even at first that small cohorts are learned by heart before it moves.
On one scale there is no such race, and small sets are learned better from even scores.
"""


class CMAMIL(MultiScaleMIL):
    """CMA-MIL over ``scales``, ordered coarse to fine.

    Each scale has its own adaptor ``ReLU(Linear(E, dim))``. In the ring coarse -> ... -> fine ->
    coarse each scale then asks the next; one scale asks itself if ``cross_attention`` is "global",
    and else nobody. Each head, a gated attention and a tile classifier, serves all scales; a learned
    softmax fuses their answers.

    Args:
        scales: names, coarse to fine, each once.
        feature_dim: width D of the tile features.
        n_classes: number of classes C, at least 2.
        embed_dim: width E of a projection shared by the scales, in front of the adaptors; None:
            none, E is D.
        dim: width of embeddings.
        attention_dim: width of the gated attention's branches; None: half of ``dim``.
        heads: number H of attentions over the tiles, each with a tile classifier of its own; the
            answer is their sum over the square root of H. 1 as published.
        dropout: rate after the adaptors and in the gated attention's branches.
        cross_attention: "nested" (own children or ancestor), "global" (as published), "nested-bias" or
            "none".
        cross_norm: what follows the cross attention, or the adaptors where there is none: "none", or
            "layer" as published.
        pooling: "attention" (softmax) or "reference" (exp of the softmax, as published: close to a
            mean for bags of usual size).
        standardize: standardise features inside the model, per scale.

    Raises:
        ConfigInvalid: an argument is out of range.
    """

    kind: ClassVar[str] = "cma-mil"
    title: ClassVar[str] = "CMA-MIL"

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        *,
        embed_dim: int | None = None,
        dim: int = 128,
        attention_dim: int | None = None,
        heads: int = 1,
        dropout: float = 0.25,
        cross_attention: CrossAttentionKind = "nested",
        cross_norm: NormKind = "none",
        pooling: PoolingKind = "attention",
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
        )
        self._check_choice("pooling", pooling, get_args(PoolingKind))
        self._check_sizes(attention_dim=(attention_dim, 1), heads=(heads, 1))
        self.pooling: PoolingKind = pooling
        self.attention_dim = dim // 2 if attention_dim is None else attention_dim
        self.heads = heads
        self.attention = GatedAttention(dim, self.attention_dim, dropout, heads)
        if self.cross and len(self.scales) > 1:
            with torch.no_grad():
                self.attention.score.weight.mul_(_FIRST_SCORES)
        self.classifier = nn.Linear(dim, heads * n_classes)
        self.fusion = nn.Parameter(torch.ones(len(self.scales)))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that make this model again."""
        return {
            "scales": list(self.scales),
            "feature_dim": self.feature_dim,
            "n_classes": self.n_classes,
            "embed_dim": self.embed_dim,
            "dim": self.dim,
            "attention_dim": self.attention_dim,
            "heads": self.heads,
            "dropout": self.dropout,
            "cross_attention": self.cross_attention,
            "cross_norm": self.cross_norm,
            "pooling": self.pooling,
            "standardize": self.standardize,
        }

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        embedding = self.look_around(features, index)
        fusion = torch.softmax(self.fusion, dim=0)
        attention, contribution, scale_logits = {}, {}, []
        for position, (name, tiles) in enumerate(zip(self.scales, embedding, strict=True)):
            weights = torch.softmax(at_least_float32(self.attention(tiles)), dim=-1)
            attention[name] = weights.mean(dim=0, keepdim=True)
            pooling = self._pooling_weights(weights).transpose(0, 1)
            shares = self._shares(pooling, at_least_float32(self.classifier(tiles)))
            scale_logits.append(shares.sum(dim=0, keepdim=True))
            contribution[name] = fusion[position] * shares
        stacked = torch.cat(scale_logits, dim=0)
        bias = self.bias[None, :]
        return MILOutput(
            logits=fusion[None, :] @ stacked + bias,
            bias=bias,
            attention=attention,
            contribution=contribution,
            embedding=dict(zip(self.scales, embedding, strict=True)),
            scale_weights=fusion,
            scale_logits=stacked,
        )

    def _shares(self, pooling: Tensor, answers: Tensor) -> Tensor:
        """Weights ``[n, H]`` and answers ``[n, H * C]`` of the heads -> the tiles' shares ``[n, C]``.

        Over sqrt(H), not H: untrained, the answer is as large as that of one head.
        """
        scale = 1 / math.sqrt(self.heads)
        if not torch.compiler.is_exporting():
            by_head = answers.view(-1, self.heads, self.n_classes)
            return (pooling[:, :, None] * by_head).sum(dim=1) * scale
        # with axes as short as these runtimes multiply matrices faster than they broadcast and add
        spread = torch.eye(self.heads).repeat_interleave(self.n_classes, dim=1)
        add_up = scale * torch.eye(self.n_classes).repeat(self.heads, 1)
        shares: Tensor = (pooling @ spread * answers) @ add_up
        return shares

    def _pooling_weights(self, attention: Tensor) -> Tensor:
        if self.pooling == "attention":
            return attention
        weights = torch.exp(attention)
        return weights / weights.sum(dim=-1, keepdim=True)


__all__ = ["CMAMIL", "CrossAttentionKind", "NormKind", "PoolingKind"]
