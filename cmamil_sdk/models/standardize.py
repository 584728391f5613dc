"""Feature standardisation as a part of the model, so that no graph is exported without it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIN_STD = 1e-6
"""A feature that varies less is constant on the training tiles and is only centred."""
CLIP = 10.0
"""Largest magnitude of a standardised feature: one absurd tile cannot drown a bag."""


class Standardize(nn.Module):
    """``clip((x - mean) / std, -10, 10)`` with the training tiles' moments as buffers ``[D]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Take over ``mean`` and ``std`` ``[D]``; a standard deviation under 1e-6 counts as 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < MIN_STD, torch.ones_like(std), std))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise ``[n, D]`` features."""
        # in place on the difference: the copies of a large bag are what fills the memory
        return (features - self.mean).mul_(self.std.reciprocal()).clamp_(-CLIP, CLIP)


__all__ = ["CLIP", "MIN_STD", "Standardize"]
