"""Where a model computes in full precision whatever it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """In float32, also under autocast: softmax weights of large bags underflow in fp16. float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


__all__ = ["at_least_float32"]
