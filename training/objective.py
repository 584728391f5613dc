"""What a model is trained for: one object per model, which the trainer asks for the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel
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
        """Mean over scales; the ranking is each tile's contribution to the classes."""
        if self.tile_classifiers is None:
            return None
        losses = []
        for name, embedding in output.embedding.items():
            logits = self.tile_classifiers(embedding).view(len(embedding), -1, 2)
            if self.config.pooling == "reference":
                # as published; softmax attention instead would shrink the logits with 1 / n
                logits = logits * torch.exp(output.attention[name])[0][:, None, None]
            losses.append(
                instance_loss(
                    output.contribution[name],
                    logits,
                    label,
                    self.config.k_sample,
                    subtyping=self.config.subtyping,
                    loss=instance_loss_function(self.config.inst_loss),
                )
            )
        return torch.stack(losses).mean()

    def _scale_loss(self, output: MILOutput, target: Tensor) -> Tensor | None:
        if self.config.scale_loss == 0:
            return None
        answers = output.scale_logits + output.bias
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
        if output.coarse is None:
            raise ConfigInvalid("HMIL's objective needs a model with a coarse answer; use 'hmil'.")
        target = torch.tensor([label], device=output.logits.device)
        coarse_target = self.parents[target]
        fine = output.logits + self.fine_prior
        coarse = output.coarse.logits + self.coarse_prior
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
        if output.coarse is None:
            raise ConfigInvalid("HMIL's objective needs a model with a coarse answer; use 'hmil'.")
        maps = [(output.coarse.attention[name], fine) for name, fine in output.attention.items()]
        if self.recipe.as_coded:
            return torch.stack(
                [instance_alignment_as_coded(c, f, self.parents) for c, f in maps]
            ).mean()
        return torch.stack([instance_alignment(c, f, label, self.parents) for c, f in maps]).mean()


def make_objective(model: MILModel, config: TrainConfig, labels: Sequence[int]) -> Objective:
    """The objective that belongs to a model; ``labels`` are the training slides' classes."""
    if isinstance(model, HMIL):
        return HMILObjective(model, config, labels)
    return CMAObjective(model, config)


__all__ = ["CMAObjective", "HMILObjective", "Objective", "make_objective"]
