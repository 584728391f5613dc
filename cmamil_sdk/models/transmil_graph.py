"""torchmil's TransMIL in operators that a graph with any number of tiles can hold.

The library lays the tiles out in a square and cuts them into landmarks with Python numbers, so a
graph traced from it would fit one bag size only. Here the same is computed with tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmil.models import TransMIL
from torchmil.nn.attention import NystromAttention
from torchmil.nn.attention.nystrom_attention import moore_penrose_iter_pinv

_MAX_SIDE = 1024


def transmil_logits(net: TransMIL, tiles: Tensor) -> Tensor:
    """``net(tiles[None])`` for tiles ``[n, dim]``, at most 2**20, in evaluation mode -> ``[1, C]``."""
    embedding = net.fc1(tiles[None])
    n = tiles.shape[0]
    side: Any = torch.scalar_tensor(n, dtype=torch.float64).sqrt().ceil().long().item()
    torch._check(side >= 1)  # type: ignore[no-untyped-call]
    torch._check(side <= _MAX_SIDE)  # type: ignore[no-untyped-call]
    rows = torch.arange(side * side, device=tiles.device)
    rows = torch.where(rows < n, rows, rows - n)  # the first tiles fill the square up
    sequence = torch.cat([net.cls_token, embedding[:, rows]], dim=1)
    for number, layer in enumerate(net.layers):
        sequence = sequence + _nystrom(layer.att_module, layer.norm1(sequence))
        if number == 0:
            sequence = _with_positions(net, sequence, side)
    logits: Tensor = net.classifier(net.norm(sequence)[:, 0])
    return logits


def _with_positions(net: TransMIL, sequence: Tensor, side: Any) -> Tensor:
    token, tiles = sequence[:, :1], sequence[:, 1:]
    square = tiles.transpose(1, 2).reshape(1, sequence.shape[2], side, side)
    position = net.pos_layer
    square = square + position.proj(square) + position.proj1(square) + position.proj2(square)
    return torch.cat([token, square.flatten(2).transpose(1, 2)], dim=1)


def _nystrom(attention: NystromAttention, sequence: Tensor) -> Tensor:
    """Nystrom attention of ``[1, n, dim]``; zeros in front make n a multiple of the landmarks."""
    n, landmarks, heads = sequence.shape[1], attention.n_landmarks, attention.n_heads
    width = (n + landmarks - 1) // landmarks
    length = landmarks * width
    padded = torch.cat([sequence.new_zeros(1, length - n, sequence.shape[2]), sequence], dim=1)
    query, key, value = (
        part.reshape(1, length, heads, -1).transpose(1, 2)
        for part in attention.qkv_nn(padded).chunk(3, dim=-1)
    )
    query = query * attention.scale_factor
    coarse_query = query.reshape(1, heads, landmarks, width, -1).sum(dim=3) / width
    coarse_key = key.reshape(1, heads, landmarks, width, -1).sum(dim=3) / width
    to_landmarks = (query @ coarse_key.transpose(-1, -2)).softmax(dim=-1)
    between = (coarse_query @ coarse_key.transpose(-1, -2)).softmax(dim=-1)
    from_landmarks = (coarse_query @ key.transpose(-1, -2)).softmax(dim=-1)
    inverse = moore_penrose_iter_pinv(between, attention.pinv_iterations)
    attended = (to_landmarks @ inverse) @ (from_landmarks @ value)
    merged = attended.transpose(1, 2).reshape(1, length, -1)
    projected: Tensor = attention.out_proj(merged)
    return projected[:, length - n :]


__all__ = ["transmil_logits"]
