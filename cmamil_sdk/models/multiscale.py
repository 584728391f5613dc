"""What stands in front of a MIL model that reads several scales: one space, and a look around.

Each scale has its own standardisation and its own adaptor into a common width; then each scale may
ask the next one in the ring coarse -> ... -> fine -> coarse. A ring of one scale asks itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.attention import (
    GlobalCrossAttention,
    NestedBiasCrossAttention,
    NestedCrossAttention,
    norm_of_tiles,
)
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.standardize import Standardize

CrossAttentionKind = Literal["nested", "global", "nested-bias", "none"]
NormKind = Literal["none", "layer"]

_BLOCKS = {
    "nested": NestedCrossAttention,
    "global": GlobalCrossAttention,
    "nested-bias": NestedBiasCrossAttention,
}


class MultiScaleMIL(MILModel):
    """Standardisation, adaptors ``ReLU(Linear(E, dim))`` and cross-magnification attention.

    Args:
        scales: names, coarse to fine, each once.
        feature_dim: width D of the tile features.
        n_classes: number of classes C, at least 2.
        embed_dim: width E of a projection ``ReLU(Linear(D, E))``, one for all scales, in front of
            the adaptors; None: none, E is D.
        dim: width of embeddings.
        dropout: rate after the adaptors, and wherever else the model drops.
        cross_attention: "nested" (own children or ancestor), "global" (as published), "nested-bias"
            (global with a learned preference for the nested) or "none". On one scale "global" is
            self-attention, and the nested forms, which have nothing to ask, are "none".
        cross_norm: what follows the cross attention, or the adaptors where there is none: "none", or
            "layer" as published.
        standardize: standardise features inside the model, per scale.
        adapt: whether features pass an adaptor; without, tiles stay ``[n, E]``.

    Raises:
        ConfigInvalid: an argument is out of range.
    """

    title: ClassVar[str]

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        *,
        embed_dim: int | None,
        dim: int,
        dropout: float,
        cross_attention: CrossAttentionKind,
        cross_norm: NormKind,
        standardize: bool,
        adapt: bool = True,
    ) -> None:
        super().__init__()
        self._check_scales(scales)
        self._check_sizes(
            feature_dim=(feature_dim, 1),
            n_classes=(n_classes, 2),
            embed_dim=(embed_dim, 1),
            dim=(dim, 2),
        )
        if not 0.0 <= dropout < 1.0:
            raise ConfigInvalid(f"{self.title}: dropout {dropout} must lie in [0, 1).")
        self._check_choice("cross_attention", cross_attention, get_args(CrossAttentionKind))
        self._check_choice("cross_norm", cross_norm, get_args(NormKind))
        self.scales = tuple(scales)
        self.feature_dim = feature_dim
        self.n_classes = n_classes
        self.embed_dim = embed_dim
        self.dim = self.embedding_dim = dim
        self.dropout = dropout
        self.cross_attention: CrossAttentionKind = cross_attention
        self.cross_norm: NormKind = cross_norm
        self.standardize = standardize
        n_scales = len(self.scales)
        self.standardizers = nn.ModuleList(
            Standardize(feature_dim) if standardize else nn.Identity() for _ in range(n_scales)
        )
        self.embed = None if embed_dim is None else nn.Linear(feature_dim, embed_dim)
        self.adaptors = nn.ModuleList(
            nn.Linear(embed_dim or feature_dim, dim) for _ in range(n_scales if adapt else 0)
        )
        self.drop = nn.Dropout(dropout)
        self.width = dim if adapt else embed_dim or feature_dim
        self.cross = nn.ModuleList(self._cross_blocks())
        self.norms = nn.ModuleList(
            norm_of_tiles(self.width, cross_norm) for _ in range(0 if self.cross else n_scales)
        )

    @property
    def index_names(self) -> tuple[str, ...]:
        """``children_<scale>`` for all but the finest and ``ancestor_<finest>``, where nested."""
        if self.cross_attention not in ("nested", "nested-bias") or len(self.scales) == 1:
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

    def look_around(
        self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]
    ) -> list[Tensor]:
        """Tiles ``[n, width]`` of each scale, after all of the above; ``width`` is E without adaptors.

        Raises:
            ScaleMismatch: a scale or an index array is missing.
        """
        self.check_inputs(features, index)
        return self._attend(self._adapt(features), index)

    def _cross_blocks(self) -> list[nn.Module]:
        alone = len(self.scales) == 1
        if self.cross_attention == "none" or (alone and self.cross_attention != "global"):
            return []
        block = _BLOCKS[self.cross_attention]
        return [block(self.width, self.cross_norm) for _ in self.scales]

    def _adapt(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        tiles = [
            standardizer(features[name])
            for name, standardizer in zip(self.scales, self.standardizers, strict=True)
        ]
        if self.embed is not None:
            tiles = [torch.relu(self.embed(x)) for x in tiles]
        if not self.adaptors:
            return tiles
        return [
            self.drop(torch.relu(adaptor(x)))
            for x, adaptor in zip(tiles, self.adaptors, strict=True)
        ]

    def _attend(self, tiles: list[Tensor], index: Mapping[str, Tensor]) -> list[Tensor]:
        if not self.cross:
            return [norm(x) for norm, x in zip(self.norms, tiles, strict=True)]
        ring = zip(self.cross, tiles, [*tiles[1:], tiles[0]], strict=True)
        if self.cross_attention == "global":
            return [block(asking, answering) for block, asking, answering in ring]
        return [
            block(asking, answering, index[name])
            for (block, asking, answering), name in zip(ring, self.index_names, strict=True)
        ]

    def _check_scales(self, scales: Sequence[str]) -> None:
        if isinstance(scales, str) or not scales or len(set(scales)) != len(scales):
            raise ConfigInvalid(
                f"{self.title}: scales {scales!r} must name at least one scale, each once."
            )

    def _check_sizes(self, **sizes: tuple[int | None, int]) -> None:
        """Refuse sizes below their least; each is a value, None if left out, and the least."""
        for name, (value, least) in sizes.items():
            if value is not None and value < least:
                raise ConfigInvalid(f"{self.title}: {name} {value} must be at least {least}.")

    def _check_choice(self, name: str, value: str, known: Sequence[str]) -> None:
        if value not in known:
            raise ConfigInvalid(
                f"{self.title}: {name} {value!r} must be one of {', '.join(known)}."
            )


__all__ = ["CrossAttentionKind", "MultiScaleMIL", "NormKind"]
