"""The state of an unfinished fit on disk, from which a killed training goes on to equal bits."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from cmamil_sdk.errors import RunInvalid
from cmamil_sdk.files import write_atomic
from cmamil_sdk.runs import UNFINISHED_FIT, fold_directory
from cmamil_sdk.wording import counted

from .lightning_import import CheckpointIO


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as files that are whole or absent, and read without executing them."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values, whatever ``weights_only`` says.

        Raises:
            RunInvalid: it is damaged.
        """
        try:
            checkpoint: dict[str, Any] = torch.load(
                path, map_location=map_location or "cpu", weights_only=True
            )
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError) as problem:
            raise RunInvalid(
                f"{path} cannot be read ({type(problem).__name__}); remove it to train this fold "
                "from its start."
            ) from problem
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def what_is_done(run: Path, folds: Sequence[int]) -> str | None:
    """What an earlier start has left of a run, in a sentence; None: nothing that counts.

    Raises:
        RunInvalid: the state of an unfinished fold is damaged.
    """
    if (run / "metrics.json").exists():
        return (
            f"{run} is finished already and nothing is trained; for a new run name another folder."
        )
    open_folds = [
        fold for fold in folds if not (fold_directory(run, fold) / "metrics.json").exists()
    ]
    done = f"{len(folds) - len(open_folds)} of {counted(len(folds), 'fold')} done before"
    if not open_folds:
        return f"{run} goes on: {done}."
    state = fold_directory(run, open_folds[0]) / UNFINISHED_FIT
    if state.exists():
        epoch = AtomicCheckpointIO().load_checkpoint(state)["epoch"] + 1
        return f"{run} goes on: {done}, fold {open_folds[0]} after epoch {epoch}."
    return f"{run} goes on: {done}." if len(open_folds) < len(folds) else None


def random_states(generator: torch.Generator) -> dict[str, Any]:
    """States of all random numbers that a training may draw, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "order": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], *rest),
    }


def restore_random_states(states: dict[str, Any], generator: torch.Generator) -> None:
    """Go on drawing where :func:`random_states` was called."""
    generator.set_state(states["order"])
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


__all__ = ["AtomicCheckpointIO", "random_states", "restore_random_states", "what_is_done"]
