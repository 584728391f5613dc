"""Fit one model on one split, and keep its best epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel

from .config import TrainConfig
from .data import Moments, TrainingBag, moments_of
from .keeper import FitResult, Keeper, ProgressCallback
from .lightning_import import L, TensorBoardLogger
from .loading import EpochLoader
from .module import MILModule
from .objective import make_objective
from .resume import AtomicCheckpointIO
from .runtime import choose_device, lightning_precision, quiet_lightning, reproducible
from .steps import Steps
from .store import labels_of


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
    state_path: Path | None = None,
    log_directory: Path | None = None,
) -> FitResult:
    """Train ``model`` in place and leave it on the CPU, in evaluation mode, at its best epoch.

    The best epoch has the highest validation macro AUC, among equals the lowest validation loss;
    without validation bags the last epoch is kept. Two calls with equal arguments on one machine's
    CPU give equal bits.

    Args:
        model: freshly built; its standardisation is set here.
        train: bags with labels; so many make a step as ``config.slides_per_step`` says.
        val: bags that select the epoch; may be empty.
        config: only the fields on losses, optimisation and device are read.
        seed: of order and dropout.
        fold: number handed to ``on_progress``.
        moments: of the training tiles; None: computed from ``train``.
        on_progress: called after each epoch.
        state_path: file that holds the state after the last epoch but for the very last. If it
            exists, the fit goes on from it, to the bits it would have reached without a break.
        log_directory: gets TensorBoard events; None: none are written.

    Raises:
        NonFiniteOutput: the training loss became NaN or infinite.
        EngineMissing: the device is not there.
        ConfigInvalid: the device cannot train in this precision, or the schedule lacks ``val``.
        RunInvalid: the file at ``state_path`` is damaged.
    """
    if config.schedule == "plateau" and not len(val):
        raise ConfigInvalid(
            "schedule 'plateau' follows the validation loss, and there are no validation slides; "
            "give some, or choose another schedule."
        )
    device = choose_device(config.device)
    precision = lightning_precision(config.precision, device)
    with reproducible(seed, config.threads), quiet_lightning():
        if model.standardize:
            model.set_standardization(moments_of(train) if moments is None else moments)
        objective = make_objective(model, config, labels_of(train))
        module = MILModule(model, objective, config)
        generator = torch.Generator().manual_seed(seed)
        step_size = config.slides_per_step(len(train))
        loader = EpochLoader(
            train,
            generator,
            sampling=config.sampling,
            step_size=step_size,
            max_tiles=config.max_tiles,
        )
        logger = None if log_directory is None else TensorBoardLogger(log_directory, "", "")
        keeper = Keeper(
            module,
            fold,
            generator,
            on_progress=on_progress,
            state_path=state_path,
            logger=logger,
        )
        trainer = L.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [device.index],
            precision=precision,
            max_epochs=config.epochs,
            accumulate_grad_batches=step_size,
            gradient_clip_val=config.gradient_clip,
            num_sanity_val_steps=0,
            callbacks=[keeper],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(
            module,
            train_dataloaders=Steps(loader, step_size) if objective.needs_step else loader,
            val_dataloaders=EpochLoader(val) if len(val) else None,
            ckpt_path=state_path if state_path is not None and state_path.exists() else None,
        )
        if logger is not None:
            logger.finalize("success")
        model.load_state_dict(keeper.best_weights)
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


__all__ = [
    "FitResult",
    "Logits",
    "ProgressCallback",
    "fit",
    "predict_levels",
    "predict_logits",
]
