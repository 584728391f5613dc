"""Bags as an epoch brings them: in which order, how often, and with how many tiles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .data import TrainingBag
from .store import labels_of

Sampling = Literal["shuffle", "balanced"]


class EpochLoader:
    """Bags one by one; each pass is an epoch.

    All that is random comes from ``generator``, whose state after an epoch is all that the next one
    depends on.

    Args:
        bags: with labels.
        generator: None: all bags in order, whole.
        sampling: ``shuffle``: each bag once; ``balanced``: as many bags, in every step of
            ``step_size`` each class as often as any other, give or take one.
        step_size: bags of an optimiser step.
        max_tiles: as :func:`subsample`; None: all.
    """

    def __init__(
        self,
        bags: Sequence[TrainingBag],
        generator: torch.Generator | None = None,
        *,
        sampling: Sampling = "shuffle",
        step_size: int = 1,
        max_tiles: int | None = None,
    ) -> None:
        self._bags = bags
        self._generator = generator
        self._max_tiles = max_tiles
        self._step_size = step_size
        self._classes = _members(labels_of(bags)) if sampling == "balanced" else None

    def __len__(self) -> int:
        return len(self._bags)

    def __iter__(self) -> Iterator[TrainingBag]:
        for position in self._order():
            bag = self._bags[position]
            if self._generator is None or self._max_tiles is None:
                yield bag
            else:
                yield subsample(bag, self._max_tiles, self._generator)

    def _order(self) -> list[int]:
        n = len(self._bags)
        if self._generator is None:
            return list(range(n))
        if self._classes is None:
            return torch.randperm(n, generator=self._generator).tolist()
        return _balanced(self._classes, n, self._step_size, self._generator)


def _balanced(
    classes: Sequence[Sequence[int]], n: int, step_size: int, generator: torch.Generator
) -> list[int]:
    """``n`` positions, step by step; ``classes`` has those of each class.

    A step holds every class equally often; what is left goes to classes whose turn it is, in a
    random order that is dealt to its end. So are the bags of a class, and a rare one comes again.
    """
    bags = [_dealt(members, generator) for members in classes]
    waiting: list[int] = []
    order: list[int] = []
    while len(order) < n:
        rounds, rest = divmod(min(step_size, n - len(order)), len(classes))
        step = [*range(len(classes))] * rounds + _next_turns(len(classes), rest, waiting, generator)
        order += [next(bags[label]) for label in step]
    return order


def _next_turns(
    n_classes: int, count: int, waiting: list[int], generator: torch.Generator
) -> list[int]:
    """The next ``count`` different classes of those ``waiting``, which is dealt anew when short."""
    if len(set(waiting)) < count:
        waiting += torch.randperm(n_classes, generator=generator).tolist()
    chosen = list(dict.fromkeys(waiting))[:count]
    for label in chosen:
        waiting.remove(label)
    return chosen


def _dealt(items: Sequence[int], generator: torch.Generator) -> Iterator[int]:
    """All items in a random order, again and again."""
    while True:
        for position in torch.randperm(len(items), generator=generator).tolist():
            yield items[position]


def subsample(bag: TrainingBag, max_tiles: int, generator: torch.Generator) -> TrainingBag:
    """At most ``max_tiles`` tiles of the finest scale, drawn without replacement, and their ancestors.

    A coarser tile goes when it had finer tiles and none of them stays. Where no tile's parent is
    known, every scale is drawn by itself, at most ``max_tiles`` of each. The order of rows is kept
    and the index arrays name the new rows. A bag that is small enough is returned as it is.
    """
    names = list(bag.features)
    finest = names[-1]
    if not any((bag.index[key] >= 0).any() for key in bag.index):
        return _each_scale(bag, max_tiles, generator)
    n = len(bag.features[finest])
    if n <= max_tiles:
        return bag
    kept = {finest: _drawn(n, max_tiles, generator)}
    index: dict[str, Tensor] = {}
    for coarse, fine in reversed(list(itertools.pairwise(names))):
        children = bag.index[f"children_{coarse}"]
        linked = _renumber(kept[fine], len(bag.features[fine]))[children]
        stays = (linked >= 0).any(dim=1) | (children < 0).all(dim=1)
        kept[coarse] = stays.nonzero()[:, 0]
        index[f"children_{coarse}"] = _none_last(linked[stays])
    coarsest = names[0]
    rows = _renumber(kept[coarsest], len(bag.features[coarsest]))
    index[f"ancestor_{finest}"] = rows[bag.index[f"ancestor_{finest}"][kept[finest]]]
    features: Mapping[str, Tensor] = {name: x[kept[name]] for name, x in bag.features.items()}
    return TrainingBag(bag.slide, bag.label, features, index)


def _each_scale(bag: TrainingBag, max_tiles: int, generator: torch.Generator) -> TrainingBag:
    """At most ``max_tiles`` tiles of each scale of a bag whose index, if any, names no row."""
    if all(len(x) <= max_tiles for x in bag.features.values()):
        return bag
    kept = {name: _drawn(len(x), max_tiles, generator) for name, x in bag.features.items()}
    return TrainingBag(
        bag.slide,
        bag.label,
        {name: x[kept[name]] for name, x in bag.features.items()},
        {key: rows[kept[key.split("_", 1)[1]]] for key, rows in bag.index.items()},
    )


def _drawn(n: int, max_tiles: int, generator: torch.Generator) -> Tensor:
    """At most ``max_tiles`` of ``n`` rows, ascending."""
    return torch.randperm(n, generator=generator)[:max_tiles].sort().values


def _members(labels: Sequence[int]) -> list[list[int]]:
    """Positions of the bags of each class that occurs."""
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for position, label in enumerate(labels):
        members[label].append(position)
    return list(members.values())


def _renumber(kept: Tensor, n: int) -> Tensor:
    """New row ``[n + 1]`` of each old one, -1 where it went; index -1 (none) stays -1."""
    rows = torch.full((n + 1,), -1, dtype=torch.int64)
    rows[kept] = torch.arange(len(kept))
    return rows


def _none_last(children: Tensor) -> Tensor:
    """Rows in ascending order with -1 at the end, as the index arrays are made."""
    absent = torch.iinfo(torch.int64).max
    ordered = children.masked_fill(children < 0, absent).sort(dim=1).values
    return ordered.masked_fill(ordered == absent, -1)


__all__ = ["EpochLoader", "Sampling", "subsample"]
