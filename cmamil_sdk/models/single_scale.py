"""Baselines that read one scale: what they share, and mean, max and attention pooling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.attention import GatedAttention
from cmamil_sdk.models.multiscale import MultiScaleMIL
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.models.precision import at_least_float32


class SingleScaleMIL(MultiScaleMIL):
    """Standardisation, ``ReLU(Linear(D, dim))``, dropout, and then what :meth:`build` makes.

    Args:
        scales: the name of its one scale.
        feature_dim: width D of the tile features.
        n_classes: number of classes C, at least 2.
        embed_dim: width of the projection in front; None: none.
        dim: width of embeddings.
        attention_dim: width of the hidden layer that weighs the tiles; None: half of ``dim``.
        dropout: rate after the first layer.
        standardize: standardise features inside the model.

    Raises:
        ConfigInvalid: an argument is out of range, there are several scales, or ``attention_dim``
            is given to a model without attention.
    """

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        *,
        embed_dim: int | None = None,
        dim: int = 128,
        attention_dim: int | None = None,
        dropout: float = 0.25,
        standardize: bool = True,
    ) -> None:
        super().__init__(
            scales,
            feature_dim,
            n_classes,
            embed_dim=embed_dim,
            dim=dim,
            dropout=dropout,
            cross_attention="none",
            cross_norm="none",
            standardize=standardize,
        )
        if len(self.scales) > 1:
            raise ConfigInvalid(
                f"{self.title}: it reads one scale, not {', '.join(self.scales)}; name one of them "
                "with scales."
            )
        if attention_dim is not None and not self.has_attention:
            raise ConfigInvalid(f"{self.title}: it has no attention; leave out attention_dim.")
        self._check_sizes(attention_dim=(attention_dim, 1))
        self.attention_dim = dim // 2 if attention_dim is None else attention_dim
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Make the layers behind the first one."""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments that make this model again."""
        found = {
            "scales": list(self.scales),
            "feature_dim": self.feature_dim,
            "n_classes": self.n_classes,
            "embed_dim": self.embed_dim,
            "dim": self.dim,
            "dropout": self.dropout,
            "standardize": self.standardize,
        }
        return found | ({"attention_dim": self.attention_dim} if self.has_attention else {})

    def first_layer(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> Tensor:
        """Tiles ``[n, dim]`` after the dropout."""
        return self.look_around(features, index)[0]

    def additive(
        self,
        embedding: Tensor,
        contribution: Tensor,
        bias: Tensor,
        attention: Tensor | None = None,
        streams: Tensor | None = None,
    ) -> MILOutput:
        """The output of a model whose logits are ``bias [C]`` plus ``contribution [n, C]``.

        Args:
            embedding: ``[n, dim]``.
            contribution: each tile's share.
            bias: what no tile brings.
            attention: ``[K, n]``, rows sum to 1; None: the model has none.
            streams: see :class:`MILOutput`.
        """
        (name,) = self.scales
        return MILOutput(
            logits=contribution.sum(dim=0, keepdim=True) + bias,
            embedding={name: embedding},
            bias=bias[None, :],
            attention=None if attention is None else {name: attention},
            contribution={name: contribution},
            streams=streams,
        )

    def attention_pooled(self, tiles: Tensor, scores: Tensor, head: nn.Linear) -> MILOutput:
        """The output of ``head`` on the sum of ``tiles [n, dim]``, weighed by a softmax.

        Args:
            tiles: what is summed up.
            scores: ``[1, n]``, before the softmax.
            head: the classifier of the bag, which makes each tile's share as well.
        """
        attention = torch.softmax(at_least_float32(scores), dim=-1)
        share = attention.transpose(0, 1) * at_least_float32(F.linear(tiles, head.weight))
        return self.additive(tiles, share, head.bias, attention)


class _ScorePooling(SingleScaleMIL):
    """A classifier on each tile, and a fixed rule for what its scores count."""

    has_attention = False

    def build(self) -> None:
        """One classifier."""
        self.classifier = nn.Linear(self.dim, self.n_classes)

    @abstractmethod
    def share(self, scores: Tensor) -> Tensor:
        """Each tile's share in the answer, of ``scores [n, C]``."""

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.first_layer(features, index)
        scores = at_least_float32(F.linear(tiles, self.classifier.weight))
        return self.additive(tiles, self.share(scores), self.classifier.bias)


class MeanPooling(_ScorePooling):
    """The mean of the tiles' scores, which is the score of their mean."""

    kind = "mean"
    title = "Mean pooling"

    def share(self, scores: Tensor) -> Tensor:
        """An equal part of each."""
        return scores / scores.shape[0]


class MaxPooling(_ScorePooling):
    """The largest of the tiles' scores, class by class; its tile has the whole share."""

    kind = "max"
    title = "Max pooling"

    def share(self, scores: Tensor) -> Tensor:
        """The largest of each class."""
        return only_largest(scores)


class GatedABMIL(SingleScaleMIL):
    """Gated attention pooling of Ilse et al. 2018 with a linear classifier."""

    kind = "abmil"
    title = "ABMIL"

    def build(self) -> None:
        """Gated attention and one classifier."""
        self.attention = GatedAttention(self.dim, self.attention_dim, dropout=0.0)
        self.classifier = nn.Linear(self.dim, self.n_classes)

    def forward(self, features: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> MILOutput:
        """Answer for one bag, see :meth:`MILModel.forward`."""
        tiles = self.first_layer(features, index)
        return self.attention_pooled(tiles, self.attention(tiles), self.classifier)


def only_largest(scores: Tensor) -> Tensor:
    """``[n, C]`` with all but the largest of each column (the first of equals) set to 0."""
    rows = torch.arange(scores.shape[0], device=scores.device)
    largest = rows[:, None] == scores.argmax(dim=0)[None, :]
    return torch.where(largest, scores, torch.zeros_like(scores))


__all__ = ["GatedABMIL", "MaxPooling", "MeanPooling", "SingleScaleMIL", "only_largest"]
