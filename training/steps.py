"""A loss over all slides of an optimiser step, without holding the graphs of all of them.

Gradients are accumulated slide by slide, so only one graph is alive. A term that compares slides
with each other needs the embeddings of the whole step. They are made twice (GradCache, Gao et al.
2021): once without a graph, for all slides of the step, to get the loss and its gradient with
respect to each slide's embedding; then again for each slide as it is trained, where that gradient
is handed on. Dropout draws the same both times and weights change only after the step, so the sum
of the slides' gradients is exactly that of the loss over the step. It costs a second forward, and
memory for the features, not the graphs, of the step's slides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import MILOutput

from .data import TrainingBag
from .objective import Objective


@dataclass(frozen=True)
class StepBag:
    """A bag to train on; ``opens`` has all bags of its optimiser step if it is their first."""

    bag: TrainingBag
    opens: tuple[TrainingBag, ...]

    def to(self, device: torch.device) -> Self:
        """The bag on ``device``; the others of its step stay where they are."""
        return type(self)(self.bag.to(device), self.opens)


class Loader(Protocol):
    """Bags one by one, and how many."""

    def __iter__(self) -> Iterator[TrainingBag]: ...

    def __len__(self) -> int: ...


class Steps:
    """The bags of a loader, told which of them share an optimiser step."""

    def __init__(self, loader: Loader, size: int) -> None:
        self._loader = loader
        self._size = size

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[StepBag]:
        waiting: list[TrainingBag] = []
        for bag in self._loader:
            waiting.append(bag)
            if len(waiting) == self._size:
                yield from _step(waiting)
                waiting = []
        yield from _step(waiting)


class StepLoss:
    """The objective's loss over a step, handed out slide by slide."""

    def __init__(self, model: MILModel, objective: Objective) -> None:
        self._model = model
        self._objective = objective
        self._value = torch.zeros(())
        self._gradients: list[Tensor] = []

    def open(self, bags: tuple[TrainingBag, ...], epoch: int, device: torch.device) -> None:
        """Begin a step: embeddings of all its bags, the loss, and its gradient on each."""
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            embeddings = [
                _embedding(self._model(on_device.features, on_device.index))
                for on_device in (bag.to(device) for bag in bags)
            ]
        stacked = torch.stack(embeddings).requires_grad_()
        labels = torch.tensor([bag.label for bag in bags], device=device)
        with torch.enable_grad():
            loss = self._objective.step_loss(stacked, labels, epoch)
            (gradient,) = torch.autograd.grad(loss, stacked)
        self._value = loss.detach()
        # the trainer averages over the slides of a step; this loss is not a sum over them
        self._gradients = [g * len(bags) for g in gradient.unbind()][::-1]

    def share(self, output: MILOutput) -> Tensor:
        """The next slide's part: the step's loss by value, this slide's part of its gradient."""
        embedding = _embedding(output)
        carried = (embedding * self._gradients.pop()).sum()
        return self._value + carried - carried.detach()


def _step(bags: list[TrainingBag]) -> Iterator[StepBag]:
    for position, bag in enumerate(bags):
        yield StepBag(bag, () if position else tuple(bags))


def _embedding(output: MILOutput) -> Tensor:
    if output.class_embedding is None:
        raise ConfigInvalid(
            "A loss over the slides of a step needs class embeddings, which this model does not "
            "make; train model 'hmil', or leave the loss out."
        )
    return output.class_embedding.float()


__all__ = ["Loader", "StepBag", "StepLoss", "Steps"]
