"""CMA-MIL: cross-magnification attention, shared gated attention pooling, learned fusion.

The published model with its defects repaired: the pooling weights are the softmax itself
(``pooling="reference"`` keeps ``exp(softmax)`` for comparison), ``forward`` never sees a label, any
number of scales from one, cross attention may follow the nested grid, and no LayerNorm follows it
(``cross_norm="layer"`` keeps that).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.attention import (
    GatedAttention,
    GlobalCrossAttention,
    NestedCrossAttention,
)
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.models.standardize import Standardize

CrossAttentionKind = Literal["nested", "global", "none"]
PoolingKind = Literal["attention", "reference"]
NormKind = Literal["none", "layer"]


class CMAMIL(MILModel):
    """CMA-MIL over ``scales``, ordered coarse to fine.

    Each scale has its own adaptor ``ReLU(Linear(D, dim))``. In the ring coarse -> ... -> fine ->
    coarse each scale then asks the next; with one scale there is nothing to ask. One gated
    attention and one tile classifier serve all scales; a learned softmax fuses their answers.

    Args:
        scales: names, coarse to fine, each once.
        feature_dim: width D of the tile features.
        n_classes: number of classes C, at least 2.
        dim: width of embeddings; the gated attention is half as wide.
        dropout: rate in the gated attention's branches.
        cross_attention: "nested" (own children or ancestor), "global" (as published) or "none".
        cross_norm: what follows the cross attention: "none", or "layer" as published.
        pooling: "attention" (softmax) or "reference" (exp of the softmax, as published: close to a
            mean for bags of usual size).
        standardize: standardise features inside the model, per scale.

    Raises:
        ConfigInvalid: an argument is out of range.
    """

    kind: ClassVar[str] = "cma-mil"

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        *,
        dim: int = 128,
        dropout: float = 0.25,
        cross_attention: CrossAttentionKind = "nested",
        cross_norm: NormKind = "none",
        pooling: PoolingKind = "attention",
        standardize: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(scales, feature_dim, n_classes)
        _check_options(dim, dropout)
        _check_choices(cross_attention, cross_norm, pooling)
        self.scales = tuple(scales)
        self.feature_dim = feature_dim
        self.n_classes = n_classes
        self.dim = self.embedding_dim = dim
        self.dropout = dropout
        self.cross_attention: CrossAttentionKind = cross_attention
        self.cross_norm: NormKind = cross_norm
        self.pooling: PoolingKind = pooling
        self.standardize = standardize
        n_scales = len(self.scales)
        self.standardizers = nn.ModuleList(
            Standardize(feature_dim) if standardize else nn.Identity() for _ in range(n_scales)
        )
        self.adaptors = nn.ModuleList(nn.Linear(feature_dim, dim) for _ in range(n_scales))
        self.cross = nn.ModuleList(self._cross_blocks())
        self.attention = GatedAttention(dim, dim // 2, dropout)
        self.classifier = nn.Linear(dim, n_classes)
        self.fusion = nn.Parameter(torch.ones(n_scales))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that make this model again."""
        return {
            "scales": list(self.scales),
            "feature_dim": self.feature_dim,
            "n_classes": self.n_classes,
            "dim": self.dim,
            "dropout": self.dropout,
            "cross_attention": self.cross_attention,
            "cross_norm": self.cross_norm,
            "pooling": self.pooling,
            "standardize": self.standardize,
        }

    @property
    def index_names(self) -> tuple[str, ...]:
        """``children_<scale>`` for all but the finest and ``ancestor_<finest>``, where nested."""
        if self.cross_attention != "nested" or len(self.scales) == 1:
            return ()
        return (*(f"children_{s}" for s in self.scales[:-1]), f"ancestor_{self.scales[-1]}")

    def set_standardization(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take over mean and standard deviation ``[D]`` of the training tiles, per scale."""
        for name, module in zip(self.scales, self.standardizers, strict=True):
            if not isinstance(module, Standardize):
                raise ConfigInvalid(
                    "The model was built with standardize=False and takes no moments; "
                    "build it with standardize=True."
                )
            module.set_moments(*moments[name])

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        self.check_inputs(features, index)
        embedding = self._attend(self._adapt(features), index)
        fusion = torch.softmax(self.fusion, dim=0)
        attention, contribution, instance_logits, scale_logits = {}, {}, {}, []
        for position, (name, tiles) in enumerate(zip(self.scales, embedding, strict=True)):
            # float32 also under autocast: softmax weights of large bags underflow in fp16
            attention[name] = torch.softmax(self.attention(tiles).float(), dim=-1)
            weights = self._pooling_weights(attention[name])
            instance_logits[name] = self.classifier(tiles)
            scale_logits.append(weights @ instance_logits[name].float())
            share = weights.transpose(0, 1) * instance_logits[name]
            contribution[name] = fusion[position] * share
        stacked = torch.cat(scale_logits, dim=0)
        bias = self.bias[None, :]
        return MILOutput(
            logits=fusion[None, :] @ stacked + bias,
            bias=bias,
            attention=attention,
            contribution=contribution,
            instance_logits=instance_logits,
            embedding=dict(zip(self.scales, embedding, strict=True)),
            scale_weights=fusion,
            scale_logits=stacked,
        )

    def _cross_blocks(self) -> list[nn.Module]:
        if len(self.scales) == 1 or self.cross_attention == "none":
            return []
        block = NestedCrossAttention if self.cross_attention == "nested" else GlobalCrossAttention
        return [block(self.dim, self.cross_norm) for _ in self.scales]

    def _adapt(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            torch.relu(adaptor(standardizer(features[name])))
            for name, standardizer, adaptor in zip(
                self.scales, self.standardizers, self.adaptors, strict=True
            )
        ]

    def _attend(self, tiles: list[Tensor], index: Mapping[str, Tensor]) -> list[Tensor]:
        if not self.cross:
            return tiles
        ring = zip(self.cross, tiles, [*tiles[1:], tiles[0]], strict=True)
        if self.cross_attention == "global":
            return [block(asking, answering) for block, asking, answering in ring]
        return [
            block(asking, answering, index[name])
            for (block, asking, answering), name in zip(ring, self.index_names, strict=True)
        ]

    def _pooling_weights(self, attention: Tensor) -> Tensor:
        if self.pooling == "attention":
            return attention
        weights = torch.exp(attention)
        return weights / weights.sum(dim=-1, keepdim=True)


def _check_sizes(scales: Sequence[str], feature_dim: int, n_classes: int) -> None:
    if isinstance(scales, str) or not scales or len(set(scales)) != len(scales):
        raise ConfigInvalid(f"CMA-MIL: scales {scales!r} must name at least one scale, each once.")
    if feature_dim < 1:
        raise ConfigInvalid(f"CMA-MIL: feature_dim {feature_dim} must be at least 1.")
    if n_classes < 2:
        raise ConfigInvalid(f"CMA-MIL: n_classes {n_classes} must be at least 2.")


def _check_options(dim: int, dropout: float) -> None:
    if dim < 2:
        raise ConfigInvalid(f"CMA-MIL: dim {dim} must be at least 2.")
    if not 0.0 <= dropout < 1.0:
        raise ConfigInvalid(f"CMA-MIL: dropout {dropout} must lie in [0, 1).")


def _check_choices(cross_attention: str, cross_norm: str, pooling: str) -> None:
    for name, value, known in (
        ("cross_attention", cross_attention, get_args(CrossAttentionKind)),
        ("cross_norm", cross_norm, get_args(NormKind)),
        ("pooling", pooling, get_args(PoolingKind)),
    ):
        if value not in known:
            raise ConfigInvalid(f"CMA-MIL: {name} {value!r} must be one of {', '.join(known)}.")


__all__ = ["CMAMIL", "CrossAttentionKind", "NormKind", "PoolingKind"]
