"""ShuffleNet v2 without its shuffles: the same features, and a fifth less time in OpenVINO.

A unit of the network passes half of its channels on, works on the others, and shuffles both together.
Moving channels costs time and computes nothing. But where a channel goes is known beforehand. So nothing
is moved: each unit's output stays where it is, its channels in the order in which later units take them,
and weights are put in that order once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmamil_sdk.encoders.torchvision_ops import import_torchvision

import_torchvision()

from torchvision.models import ShuffleNetV2  # noqa: E402
from torchvision.models.shufflenetv2 import InvertedResidual  # noqa: E402

_Channel = tuple[int, int]
"""A channel by its piece, the output of one branch, and its number there as the network has it."""

_Slice = tuple[int, int, int]
"""Channels ``start`` to ``stop`` of a piece, in the order in which it is kept."""


def fold_shuffles(network: ShuffleNetV2) -> None:
    """Replace the stages of ``network`` by stages that shuffle nothing; its features stay the same.

    What the network computes is the same to the rounding of sums in another order.
    """
    order = None
    for name in ("stage2", "stage3", "stage4"):
        stage = _Stage(getattr(network, name), order)
        setattr(network, name, stage)
        order = stage.order
    _permute_inputs(network.conv5[0], order)


class _Stage(nn.Module):
    """A stage whose output holds the network's channels in another order.

    ``order[i]`` is the number that channel ``i`` of the output has in the network's own stage.
    """

    def __init__(self, units: nn.Sequential, order: list[int] | None) -> None:
        super().__init__()
        first, *others = (unit for unit in units if isinstance(unit, InvertedResidual))
        route = _route(first.branch1[-3].out_channels, len(others))
        for branch in (first.branch1, first.branch2):
            _permute_inputs(branch[0], order)
        if order is not None:
            _permute_norm(first.branch1[1], order)
            _permute_inputs(first.branch1[2], order)
        for unit, taken in zip(others, route.taken, strict=True):
            _permute_inputs(unit.branch2[0], taken)
        pieces = [first.branch1, first.branch2, *(unit.branch2 for unit in others)]
        for branch, kept in zip(pieces, route.kept, strict=True):
            _permute_outputs(branch, kept)
        self.first = nn.ModuleList((first.branch1, first.branch2))
        self.others = nn.ModuleList(unit.branch2 for unit in others)
        self.order = route.order
        self._slices = route.slices

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the stage before -> maps of this one."""
        pieces = [branch(x) for branch in self.first]
        *inputs, output = self._slices
        for branch, slices in zip(self.others, inputs, strict=True):
            pieces.append(branch(_gathered(pieces, slices)))
        return _gathered(pieces, output)


def _gathered(pieces: list[Tensor], slices: list[_Slice]) -> Tensor:
    return torch.cat([pieces[piece][:, start:stop] for piece, start, stop in slices], dim=1)


@dataclass(frozen=True)
class _Route:
    """Where the channels of a stage go.

    Attributes:
        kept: per piece its channels in the order in which they are taken.
        slices: per unit after the first what it takes, then what the stage hands on.
        taken: per unit after the first, for each channel it gets, which of its inputs that is.
        order: the same of the stage's output.
    """

    kept: list[list[int]]
    slices: list[list[_Slice]]
    taken: list[list[int]]
    order: list[int]


def _route(width: int, units: int) -> _Route:
    """Follow the channels of a stage of 2 x ``width`` channels with ``units`` units after the first."""
    wanted: list[list[_Channel]] = []
    channels = _shuffled([(0, c) for c in range(width)], [(1, c) for c in range(width)])
    for unit in range(units):
        passed_on, worked_on = channels[:width], channels[width:]
        wanted.append(worked_on)
        channels = _shuffled(passed_on, [(unit + 2, c) for c in range(width)])
    wanted.append(channels)

    kept: list[list[int]] = [[] for _ in range(units + 2)]
    slices, numbers = [], []
    for users_inputs in wanted:
        by_piece = defaultdict(list)
        for number, (piece, channel) in enumerate(users_inputs):
            by_piece[piece].append((number, channel))
        parts, taken = [], []
        for piece, members in by_piece.items():
            start = len(kept[piece])
            kept[piece] += [channel for _, channel in members]
            parts.append((piece, start, len(kept[piece])))
            taken += [number for number, _ in members]
        slices.append(parts)
        numbers.append(taken)
    *inputs, order = numbers
    return _Route(kept, slices, inputs, order)


def _shuffled(one: list[_Channel], other: list[_Channel]) -> list[_Channel]:
    return [channel for pair in zip(one, other, strict=True) for channel in pair]


def _permute_inputs(conv: nn.Module, order: list[int] | None) -> None:
    """Let a convolution take its inputs in ``order``; one that is depthwise gives them in it, too."""
    assert isinstance(conv, nn.Conv2d)
    if order is None:
        return
    weight = conv.weight.data
    conv.weight.data = (weight[order] if conv.groups > 1 else weight[:, order]).contiguous()


def _permute_outputs(branch: nn.Module, order: list[int]) -> None:
    """Let a branch, which ends in convolution, norm and ReLU, give its channels in ``order``."""
    assert isinstance(branch, nn.Sequential)
    conv = branch[-3]
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data = conv.weight.data[order].contiguous()
    _permute_norm(branch[-2], order)


def _permute_norm(norm: nn.Module, order: list[int]) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert values is not None
        values.data = values.data[order]


__all__ = ["fold_shuffles"]
