"""What a model is trained for: one object per model, which the trainer asks for the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.models.output import MILOutput

from .config import TrainConfig
from .losses import (
    bag_alignment,
    bag_alignment_as_coded,
    bag_loss_function,
    cross_entropy,
    instance_alignment,
    instance_alignment_as_coded,
    instance_loss,
    instance_loss_function,
    log_prior,
    supervised_contrast,
    supervised_contrast_as_coded,
    total_loss,
)
from .recipes import Recipe, recipe_of

T = TypeVar("T")


class Objective(nn.Module, ABC):
    """The loss of one slide and, where ``needs_step``, of an optimiser step's slides together."""

    needs_step: bool = False

    @abstractmethod
    def forward(self, output: MILOutput, label: int, epoch: int) -> Tensor:
        """Loss of one slide of class ``label`` in ``epoch``, counted from 0."""

    def step_loss(self, embeddings: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Loss over the slides of a step; none (0) unless an objective has one.

        Args:
            embeddings: ``[B, C, d]``, each slide's ``class_embedding``.
            labels: ``[B]`` int64.
            epoch: counted from 0.
        """
        return embeddings.sum() * 0.0


class CMAObjective(Objective):
    """CMA-MIL's: slide loss, tile loss on the ends of each scale's ranking, per-scale loss.

    It holds the tile classifiers, which only training needs.
    """

    def __init__(self, model: MILModel, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.bag_loss = bag_loss_function(config.bag_loss, config.label_smoothing)
        supervised = config.inst_loss != "none" and config.bag_weight < 1.0
        self.tile_classifiers = (
            nn.Linear(model.embedding_dim, 2 * model.n_classes) if supervised else None
        )

    def forward(self, output: MILOutput, label: int, epoch: int) -> Tensor:
        """Loss of one slide; the epoch has no effect."""
        target = torch.tensor([label], device=output.logits.device)
        return total_loss(
            self.bag_loss(output.logits, target),
            self._instance_loss(output, label),
            self._scale_loss(output, target),
            bag_weight=self.config.bag_weight,
            scale_weight=self.config.scale_loss,
        )

    def _instance_loss(self, output: MILOutput, label: int) -> Tensor | None:
        """Mean over scales."""
        if self.tile_classifiers is None:
            return None
        attention = _given(output.attention, "attention")
        losses = []
        for name, rank in self._ranks(output).items():
            embedding = output.embedding[name]
            logits = self.tile_classifiers(embedding).view(len(embedding), -1, 2)
            if self.config.pooling == "reference":
                # as published; softmax attention instead would shrink the logits with 1 / n
                logits = logits * torch.exp(attention[name])[0][:, None, None]
            losses.append(
                instance_loss(
                    rank,
                    logits,
                    label,
                    self.config.k_sample,
                    subtyping=self.config.subtyping,
                    loss=instance_loss_function(self.config.inst_loss),
                )
            )
        return torch.stack(losses).mean()

    def _scale_loss(self, output: MILOutput, target: Tensor) -> Tensor | None:
        if self.config.scale_loss == 0 or len(output.embedding) == 1:
            return None
        answers = _given(output.scale_logits, "scale_logits") + _given(output.bias, "bias")
        return self.bag_loss(answers, target.expand(len(answers)))

    def _ranks(self, output: MILOutput) -> Mapping[str, Tensor]:
        """Per scale ``[n, C]``, how much each tile speaks for each class."""
        return _given(output.contribution, "contributions")


class CLAMObjective(CMAObjective):
    """CLAM's: slide loss and tile loss, where attention alone ranks the tiles of all classes."""

    def _ranks(self, output: MILOutput) -> Mapping[str, Tensor]:
        n_classes = output.logits.shape[1]
        attention = _given(output.attention, "attention")
        return {name: rows[0][:, None].expand(-1, n_classes) for name, rows in attention.items()}


class SlideObjective(Objective):
    """The slide loss alone: of the logits or, of a model with streams, of each stream, averaged."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.bag_loss = bag_loss_function(config.bag_loss, config.label_smoothing)

    def forward(self, output: MILOutput, label: int, epoch: int) -> Tensor:
        """Loss of one slide; the epoch has no effect."""
        answers = output.logits if output.streams is None else output.streams
        target = torch.tensor([label], device=answers.device)
        return self.bag_loss(answers, target.expand(len(answers)))


class HMILObjective(Objective):
    """HMIL's: cross-entropy at both levels, alignment of bags and of attention maps, contrast.

    The fine and coarse logits are adjusted by the log frequencies of the training slides' classes
    before any loss sees them. On several scales the alignment of attention maps is their mean.

    Args:
        model: whose parents are used.
        config: recipe, weights, smoothing and number of epochs.
        labels: classes of the training slides.
    """

    parents: Tensor
    fine_prior: Tensor
    coarse_prior: Tensor

    def __init__(self, model: HMIL, config: TrainConfig, labels: Sequence[int]) -> None:
        super().__init__()
        self.recipe: Recipe = recipe_of(config)
        self.smoothing = config.label_smoothing
        self.epochs = config.epochs
        self.needs_step = self.recipe.weights.contrast > 0
        parents = torch.tensor(model.parents)
        fine = torch.bincount(torch.tensor(labels), minlength=model.n_classes).double()
        coarse = torch.zeros(max(model.parents) + 1, dtype=fine.dtype).index_add(0, parents, fine)
        self.register_buffer("parents", parents, persistent=False)
        for name, counts in (("fine_prior", fine), ("coarse_prior", coarse)):
            prior = self.recipe.logit_adjust * log_prior(counts).float()
            self.register_buffer(name, prior, persistent=False)

    def forward(self, output: MILOutput, label: int, epoch: int) -> Tensor:
        """Loss of one slide but for the contrastive term."""
        coarse_output = _given(output.coarse, "a coarse answer")
        target = torch.tensor([label], device=output.logits.device)
        coarse_target = self.parents[target]
        fine = output.logits + self.fine_prior
        coarse = coarse_output.logits + self.coarse_prior
        weights = self.recipe.weights_at(epoch, self.epochs)
        align = bag_alignment_as_coded if self.recipe.as_coded else bag_alignment
        total = weights.fine * cross_entropy(fine, target, self.smoothing)
        if weights.coarse > 0:
            total = total + weights.coarse * cross_entropy(coarse, coarse_target, self.smoothing)
        if weights.bag_align > 0:
            total = total + weights.bag_align * align(fine, coarse_target, self.parents)
        if weights.inst_align > 0:
            total = total + weights.inst_align * self._instance_alignment(output, label)
        return total

    def step_loss(self, embeddings: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """The weighted contrastive term over the slides of a step."""
        weight = self.recipe.weights_at(epoch, self.epochs).contrast
        temperature = self.recipe.temperature_at(epoch, self.epochs)
        if not self.recipe.as_coded:
            own = embeddings[torch.arange(len(labels), device=labels.device), labels]
            return weight * supervised_contrast(own, labels, temperature)
        loss = supervised_contrast_as_coded(embeddings, labels, temperature)
        return weight * loss / (len(labels) if self.recipe.contrast_per_bag else 1)

    def _instance_alignment(self, output: MILOutput, label: int) -> Tensor:
        coarse = _given(output.coarse, "a coarse answer").attention
        fine = _given(output.attention, "attention")
        maps = [(coarse[name], fine[name]) for name in fine]
        if self.recipe.as_coded:
            return torch.stack(
                [instance_alignment_as_coded(c, f, self.parents) for c, f in maps]
            ).mean()
        return torch.stack([instance_alignment(c, f, label, self.parents) for c, f in maps]).mean()


def make_objective(model: MILModel, config: TrainConfig, labels: Sequence[int]) -> Objective:
    """The objective that belongs to a model; ``labels`` are the training slides' classes."""
    if isinstance(model, HMIL):
        return HMILObjective(model, config, labels)
    if isinstance(model, CMAMIL):
        return CMAObjective(model, config)
    if model.kind == "torchmil:CLAM_SB":
        return CLAMObjective(model, config)
    return SlideObjective(config)


def _given(part: T | None, what: str) -> T:
    if part is None:
        raise ConfigInvalid(
            f"The loss needs {what}, which the model does not give; train it with its own loss."
        )
    return part


__all__ = [
    "CLAMObjective",
    "CMAObjective",
    "HMILObjective",
    "Objective",
    "SlideObjective",
    "make_objective",
]
