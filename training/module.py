"""The Lightning module: what one step and one validation of a MIL model are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmamil_sdk.calibration import log_loss
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.output import MILOutput

from .config import TrainConfig
from .data import TrainingBag
from .lightning_import import L, OptimizerLRScheduler
from .metrics import macro_auc, softmax
from .objective import Objective
from .steps import StepBag, StepLoss

_WATCHED = "val_loss"
_PLATEAU_FACTOR = 0.1
_PLATEAU_PATIENCE = 5
"""Epochs in a row that may bring no lower loss; both as in HMIL's published code."""


class MILModule(L.LightningModule):
    """A model under training, with its objective.

    One training step is one slide. After each validation :attr:`validation` holds ``val_loss`` (plain
    cross-entropy, comparable between epochs and losses), ``val_auc`` and ``val_accuracy``; after
    each epoch :attr:`train_loss` its mean training loss.
    """

    def __init__(self, model: MILModel, objective: Objective, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.config = config
        self.step_loss = StepLoss(model, objective)
        self.train_loss = float("nan")
        self.validation: dict[str, float] = {}
        self._losses: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[int] = []

    def training_step(self, item: TrainingBag | StepBag, step: int) -> Tensor:
        """Loss of one slide, with its share in the loss of the optimiser step, if there is one."""
        bag = item.bag if isinstance(item, StepBag) else item
        if isinstance(item, StepBag) and item.opens:
            self.step_loss.open(item.opens, self.current_epoch, self.device)
        output: MILOutput = self.model(bag.features, bag.index)
        loss: Tensor = self.objective(output, bag.label, self.current_epoch)
        if isinstance(item, StepBag):
            loss = loss + self.step_loss.share(output)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the last epoch."""
        self._losses = []

    def validation_step(self, bag: TrainingBag, step: int) -> None:
        """Note the answer on one slide, in float32 whatever the precision of training."""
        with torch.autocast(self.device.type, enabled=False):
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
        self.log(_WATCHED, self.validation[_WATCHED])

    def close_epoch(self) -> None:
        """Set :attr:`train_loss`."""
        self.train_loss = float(torch.stack(self._losses).mean())

    def transfer_batch_to_device(
        self, batch: TrainingBag | StepBag, device: torch.device, dataloader_idx: int
    ) -> TrainingBag | StepBag:
        """Move a bag; on the CPU it is there already."""
        return batch if device.type == "cpu" else batch.to(device)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the schedule of the configuration over all steps, or by the validation loss."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,
            # a fused step would unscale float16's gradients itself, after they were to be clipped
            fused=config.precision != "fp16-mixed",
        )
        if config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        how: Any = {"interval": "step"}
        if config.schedule == "plateau":
            how["scheduler"] = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=_PLATEAU_FACTOR, patience=_PLATEAU_PATIENCE
            )
            # after an epoch's last slide and its validation, and before the epoch's state is kept
            how |= {"frequency": self.trainer.num_training_batches, "monitor": _WATCHED}
        elif config.schedule == "onecycle":
            how["scheduler"] = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=config.lr, total_steps=steps
            )
        else:
            how["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": how}


__all__ = ["MILModule"]
