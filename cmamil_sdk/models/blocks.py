"""Attention between all tiles in blocks of asking tiles, in graphs: else they hold all scores at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

SCORE_ROWS = 256
"""Rows of scores, of all heads together, that an exported graph holds at once."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot product attention of ``[..., n, d]`` and ``[..., m, d]`` -> ``[..., n, d]``."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return torch.softmax(scores, dim=-1) @ value


def in_blocks(answer: Callable[..., Tensor], *asking: Tensor, rows: int = SCORE_ROWS) -> Tensor:
    """``answer(*asking)``, computed for ``rows`` rows at a time: a Scan of the exported graph.

    Args:
        answer: of tensors ``[rows, ...]`` to one of as many rows, each of which depends on its own row
            of them alone.
        asking: tensors ``[n, ...]``, n >= 1.
        rows: of a block; the last one is filled up with zeros.

    Returns:
        ``[n, ...]``.
    """
    n = asking[0].shape[0]
    blocks = (n + rows - 1) // rows
    filled = tuple(
        F.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, blocks * rows - n]).unflatten(  # type: ignore[no-untyped-call]
            0, (blocks, rows)
        )
        for tensor in asking
    )

    def step(carry: Tensor, block: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return carry.clone(), answer(*block)

    _, answers = scan(step, asking[0].new_zeros(1), filled)
    found: Tensor = answers.flatten(0, 1)[:n]
    return found


__all__ = ["SCORE_ROWS", "attend", "in_blocks"]
