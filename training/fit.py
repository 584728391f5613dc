"""Fit one model on one split, and keep its best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cmamil_sdk.errors import NonFiniteOutput
from cmamil_sdk.models.base import MILModel

from .config import TrainConfig
from .data import Moments, TrainingBag, moments_of
from .module import MILModule
from .objective import make_objective
from .runtime import choose_device, quiet_lightning, reproducible
from .steps import Steps
from .store import labels_of

ProgressCallback = Callable[[int, int, int, Mapping[str, float]], None]
"""``on_progress(fold, epoch, epochs, metrics)`` after each epoch, counted from 1."""


@dataclass
class FitResult:
    """What a fit did.

    Attributes:
        best_epoch: the epoch kept, from 1.
        history: per epoch ``epoch, train_loss, lr`` and, with validation, ``val_loss, val_auc,
            val_accuracy``.
    """

    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: MILModel,
    train: Sequence[TrainingBag],
    val: Sequence[TrainingBag],
    config: TrainConfig,
    *,
    seed: int,
    fold: int = 0,
    moments: Moments | None = None,
    on_progress: ProgressCallback | None = None,
) -> FitResult:
    """Train ``model`` in place and leave it on the CPU, in evaluation mode, at its best epoch.

    The best epoch has the highest validation macro AUC, among equals the lowest validation loss;
    without validation bags the last epoch is kept. Two calls with equal arguments on one machine's
    CPU give equal bits.

    Args:
        model: freshly built; its standardisation is set here.
        train: bags with labels, one optimiser step each (``config.accumulate``: each so many).
        val: bags that select the epoch; may be empty.
        config: only the fields on losses, optimisation and device are read.
        seed: of order and dropout.
        fold: number handed to ``on_progress``.
        moments: of the training tiles; None: computed from ``train``.
        on_progress: called after each epoch.

    Raises:
        NonFiniteOutput: the training loss became NaN or infinite.
        EngineMissing: the device is not there.
    """
    device = choose_device(config.device)
    with reproducible(seed, config.threads), quiet_lightning():
        if model.standardize:
            model.set_standardization(moments_of(train) if moments is None else moments)
        objective = make_objective(model, config, labels_of(train))
        module = MILModule(model, objective, config)
        keeper = _Keeper(module, fold, on_progress)
        trainer = L.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [device.index],
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.gradient_clip,
            num_sanity_val_steps=0,
            callbacks=[keeper],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(
            module,
            train_dataloaders=Steps(_loader(train, seed), config.accumulate)
            if objective.needs_step
            else _loader(train, seed),
            val_dataloaders=_loader(val, None) if len(val) else None,
        )
        model.load_state_dict(keeper.state)
    model.cpu().eval()
    return keeper.result


@dataclass(frozen=True)
class Logits:
    """Answers on n bags before the temperature: ``fine [n, C]``; ``coarse [n, Cc]`` of HMIL."""

    fine: npt.NDArray[np.float64]
    coarse: npt.NDArray[np.float64] | None = None


def predict_levels(model: MILModel, bags: Sequence[TrainingBag], config: TrainConfig) -> Logits:
    """Logits of all bags at each level; the model stays where and as it was."""
    device = choose_device(config.device)
    was_training = model.training
    fine, coarse = [], []
    with reproducible(config.seed, config.threads), torch.inference_mode():
        model.to(device).eval()
        for position in range(len(bags)):
            bag = bags[position].to(device)
            output = model(bag.features, bag.index)
            fine.append(output.logits.double().cpu())
            if output.coarse is not None:
                coarse.append(output.coarse.logits.double().cpu())
    model.cpu().train(was_training)
    n_coarse = model.n_coarse
    return Logits(
        torch.cat(fine).numpy() if fine else np.zeros((0, model.n_classes)),
        None
        if n_coarse is None
        else (torch.cat(coarse).numpy() if coarse else np.zeros((0, n_coarse))),
    )


def predict_logits(
    model: MILModel, bags: Sequence[TrainingBag], config: TrainConfig
) -> npt.NDArray[np.float64]:
    """Logits ``[len(bags), C]`` before the temperature; the model stays where and as it was."""
    return predict_levels(model, bags, config).fine


class _Keeper(L.Callback):
    """Notes each epoch, keeps the best weights, stops early, reports progress."""

    def __init__(self, module: MILModule, fold: int, on_progress: ProgressCallback | None) -> None:
        self.result = FitResult()
        self.state: dict[str, Tensor] = {}
        self._module = module
        self._config = module.config
        self._fold = fold
        self._on_progress = on_progress
        self._best: tuple[float, float] | None = None

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
        waited = epoch - self.result.best_epoch
        if self._config.early_stopping and waited >= self._config.effective_patience:
            trainer.should_stop = True
        if self._on_progress is not None:
            self._on_progress(self._fold, epoch, self._config.epochs, row)

    def _keep_if_best(self, epoch: int) -> None:
        validation = self._module.validation
        rank = selection_rank(validation)
        if self._best is None or rank > self._best or not validation:
            self._best = rank
            self.result.best_epoch = epoch
            self.state = {
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


def _loader(bags: Sequence[TrainingBag], seed: int | None) -> DataLoader[Any]:
    """One bag at a time; shuffled by ``seed``, or in order without one."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(
        _Bags(bags),
        batch_size=None,
        shuffle=seed is not None,
        generator=generator,
        collate_fn=_as_is,
    )


class _Bags(torch.utils.data.Dataset[TrainingBag]):
    def __init__(self, bags: Sequence[TrainingBag]) -> None:
        self._bags = bags

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, position: int) -> TrainingBag:
        return self._bags[position]


def _as_is(bag: Any) -> Any:
    return bag


__all__ = [
    "FitResult",
    "Logits",
    "ProgressCallback",
    "fit",
    "predict_levels",
    "predict_logits",
    "selection_rank",
]
