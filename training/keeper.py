"""What a fit notes after each epoch: history, best weights, and the state to go on from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmamil_sdk.errors import NonFiniteOutput

from .lightning_import import L, TensorBoardLogger
from .module import MILModule
from .resume import random_states, restore_random_states

ProgressCallback = Callable[[int, int, int, Mapping[str, float]], None]
"""``on_progress(fold, epoch, epochs, metrics)`` after each epoch, counted from 1."""


@dataclass
class FitResult:
    """What a fit did.

    Attributes:
        best_epoch: the epoch kept, from 1.
        history: per epoch ``epoch, train_loss, lr`` and, with validation, ``val_loss, val_auc,
            val_accuracy``.
        seconds_before: time spent before the training was killed and went on, if it was.
    """

    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds_before: float = 0.0


class Keeper(L.Callback):
    """Notes each epoch, keeps the best weights, stops early, reports progress.

    Args:
        module: what is trained.
        fold: number handed to ``on_progress``.
        generator: of the order of slides.
        on_progress: called after each epoch, when its state is on disk.
        state_path: where the state is written after each epoch but the last; None: nowhere.
        logger: gets the history's figures.
    """

    def __init__(
        self,
        module: MILModule,
        fold: int,
        generator: torch.Generator,
        *,
        on_progress: ProgressCallback | None,
        state_path: Path | None,
        logger: TensorBoardLogger | None,
    ) -> None:
        self.result = FitResult()
        self.best_weights: dict[str, Tensor] = {}
        self._module = module
        self._config = module.config
        self._fold = fold
        self._generator = generator
        self._on_progress = on_progress
        self._state_path = state_path
        self._logger = logger
        self._best: tuple[float, float] | None = None
        self._random_states: dict[str, Any] | None = None
        self._started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """All that Lightning's checkpoint lacks."""
        return {
            "best_epoch": self.result.best_epoch,
            "history": self.result.history,
            "seconds": self.result.seconds_before + time.perf_counter() - self._started,
            "best": self._best,
            "best_weights": self.best_weights,
            "random_states": random_states(self._generator),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` noted; random numbers follow when training starts."""
        self.result = FitResult(
            state_dict["best_epoch"], state_dict["history"], state_dict["seconds"]
        )
        self._best = state_dict["best"]
        self.best_weights = state_dict["best_weights"]
        self._random_states = state_dict["random_states"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs when all else is restored, and before the first draw."""
        if self._random_states is not None:
            restore_random_states(self._random_states, self._generator)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs after the epoch's validation."""
        module = self._module
        module.close_epoch()
        epoch = trainer.current_epoch + 1
        if not math.isfinite(module.train_loss):
            raise NonFiniteOutput(
                f"Fold {self._fold}, epoch {epoch}: the training loss is {module.train_loss}; "
                "lower lr, or set gradient_clip."
            )
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {"train_loss": module.train_loss, "lr": lr, **module.validation}
        self.result.history.append({"epoch": epoch, **row})
        self._keep_if_best(epoch)
        if self._logger is not None:
            self._logger.log_metrics(row, step=epoch)
            self._logger.save()
        waited = epoch - self.result.best_epoch
        if self._config.early_stopping and waited >= self._config.effective_patience:
            trainer.should_stop = True
        elif self._state_path is not None and epoch < self._config.epochs:
            trainer.save_checkpoint(self._state_path)
        if self._on_progress is not None:
            self._on_progress(self._fold, epoch, self._config.epochs, row)

    def _keep_if_best(self, epoch: int) -> None:
        validation = self._module.validation
        rank = selection_rank(validation)
        if self._best is None or rank > self._best or not validation:
            self._best = rank
            self.result.best_epoch = epoch
            self.best_weights = {
                name: tensor.detach().to("cpu", copy=True)
                for name, tensor in self._module.model.state_dict().items()
            }


def selection_rank(validation: Mapping[str, float]) -> tuple[float, float]:
    """Order of epochs: higher AUC, then lower loss; NaN ranks below every number."""
    auc = validation.get("val_auc", math.nan)
    loss = validation.get("val_loss", math.nan)
    return (
        auc if math.isfinite(auc) else -math.inf,
        -loss if math.isfinite(loss) else -math.inf,
    )


__all__ = ["FitResult", "Keeper", "ProgressCallback", "selection_rank"]
