"""Gated attention over tiles, and the three forms of cross-magnification attention.

All cross forms are single-head with a residual: a tile of one scale asks, tiles of another scale
answer, and the result stays one row per asking tile. ``global`` lets it ask every tile of the other
scale, and where there is one scale only, of its own; ``nested`` only those that lie inside it, or
that it lies inside; ``nested-bias`` every tile, but with a learned preference for those.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmamil_sdk.models.blocks import attend, in_blocks

_MASKED_SCORE = -1e9
_FIRST_BIAS = 3.0
MAX_SCORES = 2**24
"""Scores (64 MiB in float32) that nested-bias attention holds at once, outside of a graph.

The C library gives blocks of this size back to the system; smaller ones it keeps, and they add up.
"""


def linear_after(layer: nn.Linear, before: nn.Linear | None, x: Tensor) -> Tensor:
    """``layer(before(x))``, or ``layer(x)`` without ``before``, of ``x [n, width]``.

    The two layers are made one: what ``before`` gives, which may be several times as wide as ``x``,
    is never held for all tiles, and a large bag costs one product where it would cost two.
    """
    if before is None:
        composed: Tensor = layer(x)
        return composed
    bias = F.linear(before.bias, layer.weight, layer.bias)
    return F.linear(x, layer.weight @ before.weight, bias)


class GatedAttention(nn.Module):
    """Scores ``Linear(tanh(h U) * sigmoid(h V))`` of Ilse et al. 2018, one row per head.

    Args:
        dim: width of the tile embeddings.
        hidden: width of the two branches.
        dropout: rate after each branch.
        heads: number K of score rows.
    """

    def __init__(self, dim: int, hidden: int, dropout: float, heads: int = 1) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, heads)
        self.dropout = nn.Dropout(dropout)

    def forward(self, embedding: Tensor, before: nn.Linear | None = None) -> Tensor:
        """``[n, dim]`` -> scores before the softmax ``[K, n]``.

        With ``before`` it is given that layer's input, and scores its output (:func:`linear_after`).
        """
        value = self.dropout(torch.tanh(linear_after(self.value, before, embedding)))
        gate = self.dropout(torch.sigmoid(linear_after(self.gate, before, embedding)))
        scores: Tensor = self.score(value * gate)
        return scores.transpose(0, 1)


def norm_of_tiles(dim: int, norm: str) -> nn.Module:
    """What tiles ``[n, dim]`` pass last: with "layer" a LayerNorm, as published, with "none" nothing.

    The LayerNorm makes all tiles equally strong, also those without a finding, and small cohorts are
    learned badly.
    """
    return nn.LayerNorm(dim) if norm == "layer" else nn.Identity()


class _CrossAttention(nn.Module):
    """Projections and the norm behind the residual (:func:`norm_of_tiles`), shared by all forms."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.norm = norm_of_tiles(dim, norm)


class GlobalCrossAttention(_CrossAttention):
    """Every asking tile attends to every answering tile (CMA-MIL as published)."""

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        """``[n, dim]`` and ``[m, dim]`` -> ``[n, dim]``; memory grows with n + m when fused.

        An exported graph holds scores of some asking tiles at a time.
        """
        query, key, value = self.query(asking), self.key(answering), self.value(answering)
        if torch.compiler.is_exporting():
            attended = in_blocks(lambda block: attend(block, key, value), query)
        else:
            attended = F.scaled_dot_product_attention(
                query[None, None], key[None, None], value[None, None]
            )[0, 0]
        normed: Tensor = self.norm(asking + attended)
        return normed


class NestedCrossAttention(_CrossAttention):
    """Every asking tile attends to its own relatives in the nested grid only."""

    def forward(self, asking: Tensor, answering: Tensor, relatives: Tensor) -> Tensor:
        """``[n, dim]``, ``[m, dim]`` and rows of the latter ``[n, r]`` (-1: none) -> ``[n, dim]``.

        A tile without relatives stays what it is, but for the norm. Time and memory grow with
        ``n * r``.
        """
        if relatives.shape[1] == 1:
            # the softmax over one relative is 1, whatever query and key say
            attended = _rows_or_zero(self.value(answering), relatives[:, 0])
        else:
            attended = self._ask(asking, answering, relatives)
        normed: Tensor = self.norm(asking + attended)
        return normed

    def _ask(self, asking: Tensor, answering: Tensor, relatives: Tensor) -> Tensor:
        """What each tile of ``[n, dim]`` learns from its relatives ``[n, r]``: ``[n, dim]``.

        Key and value are linear, so they are applied to the few that ask and not to the many that
        answer: ``q . (K t) = (q K) . t`` and ``sum(w V t) = V sum(w t)``. The key's bias moves all
        scores of a tile alike, which no softmax sees.
        """
        present = relatives >= 0
        family = _rows(answering, relatives.clamp(min=0))
        scores = (self._query_for_keys(asking)[:, None, :] * family).sum(-1)
        weights = torch.softmax(scores.masked_fill(~present, _MASKED_SCORE), dim=-1)
        weights = weights * present.to(weights.dtype)
        attended: Tensor = self.value((weights[:, :, None] * family).sum(1))
        return attended * present.any(dim=1, keepdim=True).to(attended.dtype)

    def _query_for_keys(self, asking: Tensor) -> Tensor:
        """``q K / sqrt(dim)`` of ``asking [n, dim]``, by one product with both weights' product."""
        keys = self.key.weight / math.sqrt(asking.shape[-1])
        weight = keys.transpose(0, 1) @ self.query.weight
        return F.linear(asking, weight, self.query.bias @ keys)


def _rows(tiles: Tensor, rows: Tensor) -> Tensor:
    """``tiles[rows]`` of ``[m, d]`` and ``[n, r]``, as the operator that runtimes are fast at."""
    family = tiles.index_select(0, rows.flatten())
    return family.view(-1, rows.shape[1], tiles.shape[1])


def _rows_or_zero(tiles: Tensor, rows: Tensor) -> Tensor:
    """``tiles[rows]`` of ``[m, d]`` and ``[n]``, and zeros where a row is -1."""
    with_zero = torch.cat([tiles.new_zeros(1, tiles.shape[1]), tiles])
    return with_zero.index_select(0, rows.clamp(min=-1) + 1)


class NestedBiasCrossAttention(_CrossAttention):
    """Every asking tile attends to every tile of the other scale, and more to its own relatives.

    A learned number, 3 at first, is added to the scores of relatives. Time grows with n * m. Memory
    grows with n + m: asking tiles come in blocks, whose scores are made again for the gradient.
    """

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__(dim, norm)
        self.bias = nn.Parameter(torch.tensor(_FIRST_BIAS))

    def forward(self, asking: Tensor, answering: Tensor, relatives: Tensor) -> Tensor:
        """``[n, dim]``, ``[m, dim]`` and rows of the latter ``[n, r]`` (-1: none) -> ``[n, dim]``."""
        query, key, value = self.query(asking), self.key(answering), self.value(answering)
        attended = self._attend(query, key, value, relatives)
        normed: Tensor = self.norm(asking + attended)
        return normed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, relatives: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return in_blocks(
                lambda block, own: self._attend_block(block, key, value, own), query, relatives
            )
        if len(query) * len(key) <= MAX_SCORES:
            return self._attend_block(query, key, value, relatives)
        rows = max(1, MAX_SCORES // len(key))
        blocks = zip(torch.split(query, rows), torch.split(relatives, rows), strict=True)
        # the scores of a block are not kept for the gradient, but made again
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat(
            [checkpoint(self._attend_block, q, key, value, r, **options) for q, r in blocks]
        )

    def _attend_block(self, query: Tensor, key: Tensor, value: Tensor, relatives: Tensor) -> Tensor:
        scores = query @ key.transpose(0, 1) / math.sqrt(query.shape[-1])
        extra = self.bias * (relatives >= 0).to(scores.dtype)
        scores = scores.scatter_add(1, relatives.clamp(min=0), extra)
        return torch.softmax(scores, dim=-1) @ value


__all__ = [
    "GatedAttention",
    "GlobalCrossAttention",
    "NestedBiasCrossAttention",
    "NestedCrossAttention",
    "linear_after",
    "norm_of_tiles",
]
