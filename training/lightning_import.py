"""Lightning, imported after torchvision, without which it does not import where that is broken."""

from __future__ import annotations

from cmamil_sdk.encoders.torchvision_ops import import_torchvision_if_installed

import_torchvision_if_installed()

import lightning as L  # noqa: E402
from lightning.fabric.loggers.tensorboard import TensorBoardLogger  # noqa: E402
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO  # noqa: E402
from lightning.fabric.utilities.warnings import PossibleUserWarning  # noqa: E402
from lightning.pytorch.utilities.types import OptimizerLRScheduler  # noqa: E402

__all__ = ["CheckpointIO", "L", "OptimizerLRScheduler", "PossibleUserWarning", "TensorBoardLogger"]
