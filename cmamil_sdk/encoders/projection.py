"""CMA-MIL's projection of tile features, with weights that follow from a seed.

As published, the layer was drawn anew in every run and never saved, so that the features of two runs,
or of two magnifications, could not be compared.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cmamil_sdk.encoders.info import ProjectionInfo

PROJECTION_DIM = 512
PROJECTION_SEED = 0
_DOUBLE_BITS = 53


class SeededProjection(nn.Module):
    """Features ``[B, in_dim]`` -> ``[B, 512]``: a linear layer and ReLU.

    Weight and bias are uniform in +-1 / sqrt(in_dim), as torch draws those of a fresh linear layer. They
    are computed from the raw output of PCG64, which NumPy keeps the same in all its versions.
    """

    def __init__(self, in_dim: int, *, seed: int = PROJECTION_SEED) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, PROJECTION_DIM)
        values = _uniform((in_dim + 1) * PROJECTION_DIM, seed) / np.sqrt(in_dim)
        weight, bias = np.split(values.astype(np.float32), [in_dim * PROJECTION_DIM])
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight.reshape(PROJECTION_DIM, in_dim)))
            self.linear.bias.copy_(torch.from_numpy(bias))
        digest = hashlib.sha256(weight.astype("<f4").tobytes() + bias.astype("<f4").tobytes())
        self.info = ProjectionInfo(dim=PROJECTION_DIM, seed=seed, sha256=digest.hexdigest())

    def forward(self, features: Tensor) -> Tensor:
        """Project."""
        return torch.relu(self.linear(features))


def _uniform(count: int, seed: int) -> npt.NDArray[np.float64]:
    """``count`` values in [-1, 1)."""
    raw = np.random.PCG64(seed).random_raw(count) >> np.uint64(64 - _DOUBLE_BITS)
    return raw.astype(np.float64) * 2.0 ** (1 - _DOUBLE_BITS) - 1.0


__all__ = ["PROJECTION_DIM", "PROJECTION_SEED", "SeededProjection"]
