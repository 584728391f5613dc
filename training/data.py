"""Bags as tensors, and the moments of their tiles."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmamil_sdk.features.bag import Bag

Float64 = npt.NDArray[np.float64]
_BLOCK_ROWS = 4096
Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingBag:
    """One slide as tensors.

    Attributes:
        slide: its id.
        label: class number.
        features: per scale ``[n, D]`` float32.
        index: int64 arrays of the nested grid, as ``Bag.index_arrays`` makes them.
    """

    slide: str
    label: int
    features: Mapping[str, Tensor]
    index: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Self:
        """The same bag on ``device``."""
        return type(self)(
            self.slide,
            self.label,
            {name: tensor.to(device) for name, tensor in self.features.items()},
            {name: tensor.to(device) for name, tensor in self.index.items()},
        )

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        tensors = [*self.features.values(), *self.index.values()]
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Spread:
    """Count, mean ``[D]`` and summed squared deviation ``[D]`` of the tiles of one scale."""

    n: int
    mean: Float64
    squares: Float64

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> Spread:
        """Of tiles ``[n >= 1, D]``, by blocks: a large bag has no room for its float64 copy."""
        starts = range(0, len(features), _BLOCK_ROWS)
        return functools.reduce(
            cls.merge, (cls._of_block(features[i : i + _BLOCK_ROWS]) for i in starts)
        )

    @classmethod
    def _of_block(cls, features: npt.NDArray[np.float32]) -> Spread:
        values = features.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def merge(self, other: Spread) -> Spread:
        """Of both together (Chan's update, which does not cancel)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        squares = self.squares + other.squares + delta**2 * (self.n * other.n / n)
        return Spread(n, mean, squares)


def bag_tensors(bag: Bag, label: int) -> TrainingBag:
    """A bag with its class number as tensors."""
    return TrainingBag(
        bag.slide_id,
        label,
        {s.name: torch.from_numpy(bag.features[s.name]) for s in bag.scales},
        {name: torch.from_numpy(rows) for name, rows in bag.index_arrays().items()},
    )


def spreads_of(features: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, Spread]:
    """Spread of the tiles of one slide, per scale."""
    return {name: Spread.of(tiles) for name, tiles in features.items()}


def combined(slides: Iterable[Mapping[str, Spread]]) -> Moments:
    """Mean and population standard deviation ``[D]`` float32 per scale over the tiles of slides."""
    total: dict[str, Spread] = {}
    for spreads in slides:
        for name, spread in spreads.items():
            total[name] = total[name].merge(spread) if name in total else spread
    return {
        name: (
            torch.from_numpy(spread.mean).float(),
            torch.from_numpy(np.sqrt(spread.squares / spread.n)).float(),
        )
        for name, spread in total.items()
    }


def moments_of(bags: Iterable[TrainingBag]) -> Moments:
    """Moments of the tiles of bags, as :func:`combined`."""
    return combined(
        spreads_of({name: tiles.numpy() for name, tiles in bag.features.items()}) for bag in bags
    )


__all__ = [
    "Moments",
    "Spread",
    "TrainingBag",
    "bag_tensors",
    "combined",
    "moments_of",
    "spreads_of",
]
