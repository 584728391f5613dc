"""The published models as they would be written straight away: what training speed is compared with.

Everything that the formulas name is held: all scores between two scales, all tiles at their full
width, a loop per class. Only what keeps the published code from running is mended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmamil_sdk.training.losses import (
    bag_alignment_as_coded,
    cross_entropy,
    instance_alignment_as_coded,
    smooth_top1_svm,
)


class DenseCrossAttention(nn.Module):
    """``LayerNorm(h_q + softmax(Q K^T / sqrt(dim)) V)`` with all scores ``[n, m]`` held."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, asking: Tensor, answering: Tensor) -> Tensor:
        """``[n, dim]`` and ``[m, dim]`` -> ``[n, dim]``."""
        query, key, value = self.query(asking), self.key(answering), self.value(answering)
        scores = torch.softmax(query @ key.T / math.sqrt(asking.shape[1]), dim=1)
        attended: Tensor = self.norm(asking + scores @ value)
        return attended


class Gate(nn.Module):
    """Gated attention scores ``[K, n]``."""

    def __init__(self, dim: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Dropout(dropout))
        self.gate = nn.Sequential(nn.Linear(dim, hidden), nn.Sigmoid(), nn.Dropout(dropout))
        self.score = nn.Linear(hidden, heads)

    def forward(self, tiles: Tensor) -> Tensor:
        """``[n, dim]`` -> ``[K, n]``."""
        scores: Tensor = self.score(self.value(tiles) * self.gate(tiles)).T
        return scores


class PublishedCMAMIL(nn.Module):
    """CMA-MIL: ring of dense cross attention, ``exp(softmax)`` pooling, top-k instance loss."""

    def __init__(
        self,
        scales: Sequence[str],
        feature_dim: int,
        n_classes: int,
        *,
        dim: int = 128,
        dropout: float = 0.25,
        k: int = 8,
        bag_weight: float = 0.7,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.k = k
        self.bag_weight = bag_weight
        self.adaptors = nn.ModuleList(nn.Linear(feature_dim, dim) for _ in scales)
        self.cross = nn.ModuleList(DenseCrossAttention(dim) for _ in scales)
        self.attention = Gate(dim, dim // 2, 1, dropout)
        self.classifier = nn.Linear(dim, n_classes)
        self.instance_classifiers = nn.ModuleList(nn.Linear(dim, 2) for _ in range(n_classes))
        self.fusion = nn.Parameter(torch.ones(len(self.scales)))
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, features: Mapping[str, Tensor], label: int) -> tuple[Tensor, Tensor]:
        """Logits ``[1, C]`` and the instance loss for ``label``, of features ``[n, D]`` per scale."""
        tiles = [
            torch.relu(adaptor(features[scale]))
            for scale, adaptor in zip(self.scales, self.adaptors, strict=True)
        ]
        answers, losses = [], []
        for block, asking, answering in zip(self.cross, tiles, [*tiles[1:], tiles[0]], strict=True):
            seen = block(asking, answering)
            weight = torch.exp(torch.softmax(self.attention(seen), dim=1))
            scored = self.classifier(seen) * weight.T
            answers.append(scored.sum(dim=0) / weight.sum())
            losses.append(self._instance_loss(seen, scored, weight, label))
        fusion = torch.softmax(self.fusion, dim=0)
        logits = sum(w * answer for w, answer in zip(fusion, answers, strict=True)) + self.bias
        return logits[None, :], torch.stack(losses).mean()

    def loss(self, features: Mapping[str, Tensor], label: int) -> Tensor:
        """``bag_weight`` times the cross-entropy, and the rest of the instance loss."""
        logits, instance = self(features, label)
        bag = cross_entropy(logits, torch.tensor([label]))
        total: Tensor = self.bag_weight * bag + (1.0 - self.bag_weight) * instance
        return total

    def _instance_loss(self, seen: Tensor, scored: Tensor, weight: Tensor, label: int) -> Tensor:
        losses = []
        for position, classifier in enumerate(self.instance_classifiers):
            if position != label:
                continue
            kk = min(self.k, len(seen))
            top = torch.topk(scored[:, position], kk).indices
            bottom = torch.topk(-scored[:, position], kk).indices
            chosen = torch.cat([top, bottom])
            target = torch.cat([torch.ones_like(top), torch.zeros_like(bottom)])
            logits = classifier(seen[chosen]) * weight[0, chosen, None]
            losses.append(smooth_top1_svm(logits, target))
        return torch.stack(losses).sum()


class PublishedHMIL(nn.Module):
    """HMIL on one scale: two embeddings of every tile, a map per class at both levels."""

    def __init__(
        self, feature_dim: int, parents: Sequence[int], *, dim: int = 256, fine_hidden: int = 64
    ) -> None:
        super().__init__()
        self.parents = torch.tensor(parents)
        n_fine, n_coarse = len(parents), max(parents) + 1
        self.trunk = nn.Sequential(
            nn.Linear(feature_dim, dim), nn.ReLU(), nn.Linear(dim, feature_dim)
        )
        self.refine = nn.Linear(feature_dim, dim)
        self.coarse_attention = Gate(feature_dim, dim, n_coarse, 0.0)
        self.fine_attention = Gate(dim, fine_hidden, n_fine, 0.0)
        self.coarse_head = nn.Linear(feature_dim, 1)
        self.fine_head = nn.Linear(dim, 1)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``[n, D]`` -> coarse and fine logits ``[1, C]``, coarse and fine attention ``[C, n]``."""
        offline = self.trunk(tiles)
        online = self.refine(offline)
        coarse_map = torch.softmax(self.coarse_attention(offline), dim=1)
        fine_map = torch.softmax(self.fine_attention(online), dim=1)
        coarse = _logits(self.coarse_head, coarse_map @ offline)
        fine = _logits(self.fine_head, fine_map @ online)
        return coarse, fine, coarse_map, fine_map

    def loss(self, tiles: Tensor, label: int) -> Tensor:
        """Both cross-entropies and both alignments, each with weight 1."""
        coarse, fine, coarse_map, fine_map = self(tiles)
        target = torch.tensor([label])
        coarse_target = self.parents[target]
        return (
            F.cross_entropy(coarse, coarse_target)
            + F.cross_entropy(fine, target)
            + bag_alignment_as_coded(fine, coarse_target, self.parents)
            + instance_alignment_as_coded(coarse_map, fine_map, self.parents)
        )


def _logits(head: nn.Linear, seen: Tensor) -> Tensor:
    """One class after the other, ``[C, width]`` -> ``[1, C]``."""
    return torch.stack([head(row) for row in seen]).T


__all__ = ["DenseCrossAttention", "PublishedCMAMIL", "PublishedHMIL"]
