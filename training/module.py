"""The Lightning module: what one step and one validation of a MIL model are."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import MILOutput

from .config import TrainConfig
from .data import TrainingBag
from .losses import bag_loss_function, instance_loss, instance_loss_function, total_loss
from .metrics import log_loss, macro_auc, softmax


class MILModule(L.LightningModule):
    """A model under training, with the tile classifiers that only training needs.

    One step is one slide. After each validation :attr:`validation` holds ``val_loss`` (plain
    cross-entropy, comparable between epochs and losses), ``val_auc`` and ``val_accuracy``; after
    each epoch :attr:`train_loss` its mean training loss.
    """

    def __init__(self, model: MILModel, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.bag_loss = bag_loss_function(config.bag_loss, config.label_smoothing)
        supervised = config.inst_loss != "none" and config.bag_weight < 1.0
        self.tile_classifiers = (
            nn.Linear(model.embedding_dim, 2 * model.n_classes) if supervised else None
        )
        self.train_loss = float("nan")
        self.validation: dict[str, float] = {}
        self._losses: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[int] = []

    def training_step(self, bag: TrainingBag, step: int) -> Tensor:
        """Loss of one slide."""
        output: MILOutput = self.model(bag.features, bag.index)
        target = torch.tensor([bag.label], device=output.logits.device)
        loss = total_loss(
            self.bag_loss(output.logits, target),
            self._instance_loss(output, bag.label),
            self._scale_loss(output, target),
            bag_weight=self.config.bag_weight,
            scale_weight=self.config.scale_loss,
        )
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the last epoch."""
        self._losses = []

    def validation_step(self, bag: TrainingBag, step: int) -> None:
        """Note the answer on one slide."""
        self._logits.append(self.model(bag.features, bag.index).logits)
        self._labels.append(bag.label)

    def on_validation_epoch_end(self) -> None:
        """Turn the noted answers into :attr:`validation`."""
        logits = torch.cat(self._logits).double().cpu().numpy()
        labels = np.asarray(self._labels)
        self._logits, self._labels = [], []
        self.validation = {
            "val_loss": log_loss(logits, labels),
            "val_auc": macro_auc(softmax(logits), labels),
            "val_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        }

    def close_epoch(self) -> None:
        """Set :attr:`train_loss`."""
        self.train_loss = float(torch.stack(self._losses).mean())

    def transfer_batch_to_device(
        self, batch: TrainingBag, device: torch.device, dataloader_idx: int
    ) -> TrainingBag:
        """Move a bag; on the CPU it is there already."""
        return batch if device.type == "cpu" else batch.to(device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the schedule of the configuration over all steps."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        if config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler: Any
        if config.schedule == "onecycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=config.lr, total_steps=steps
            )
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

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


__all__ = ["MILModule"]
