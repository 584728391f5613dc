"""Run directories and checkpoints: what training writes and evaluation and export read.

Layout of a run directory::

    config.json            the resolved training configuration
    splits.csv             slide, patient, label, fold, split
    fold_<k>/              of each fold:
        checkpoint.safetensors, checkpoint.json
        history.csv        per epoch: loss, learning rate, validation figures
        curves.png         the same as a picture
        metrics.json       the fold's scores, written last
        tensorboard/       events, if asked for
        unfinished.ckpt    while the fold is trained: the state to go on from
    predictions.csv        slide, fold, split, label, probability per class, prediction; with a
                           hierarchy also per coarse class
    roc.png, confusion.png, calibration.png; with a hierarchy coarse_confusion.png
    report.html            all of it for people, with the pictures inside
    metrics.json           the run's summary, written last
    .lock                  while it is written: by which process
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from cmamil_sdk import __version__
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import RunInvalid
from cmamil_sdk.files import parse_document, write_atomic, write_json
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.tiling.recipe import TilingRecipe

SCHEMA_VERSION = 1

UNFINISHED_FIT = "unfinished.ckpt"
"""In a fold's directory while it is trained: the state that a killed training goes on from."""


class CheckpointMeta(BaseModel):
    """Everything about a trained model but its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = Field(SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    sdk_version: str = __version__
    model_kind: str
    hyperparameters: dict[str, Any] = Field(description="arguments that rebuild the model")
    labels: tuple[str, ...] = Field(min_length=2)
    hierarchy: Hierarchy | None = Field(None, description="of a model with coarse labels")
    recipe: TilingRecipe | None = Field(description="None: the features did not say it")
    encoder: EncoderInfo | None = Field(description="None: the features did not say it")
    fold: int = Field(ge=0)
    seed: int
    temperature: float = Field(1.0, gt=0.0)
    coarse_temperature: float | None = Field(
        None, gt=0.0, description="of the coarse logits; None: those were not trained to answer"
    )
    metrics: dict[str, float] = {}
    slides_seen: tuple[str, ...] | None = Field(
        None, description="marks of the slides that trained or chose it; None: not known"
    )
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _hierarchy_fits(self) -> Self:
        if self.hierarchy is not None:
            self.hierarchy.check(self.labels)
        return self


def slide_mark(slide: str) -> str:
    """Sixteen hexadecimal digits that stand for a slide's id where the id itself should not.

    Bundles travel, and slides are often named after patients.
    """
    return hashlib.sha256(slide.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run directory.

    Raises:
        RunInvalid: missing, or not a JSON object.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise RunInvalid(
            f"There is no {path}; name the directory of a complete run of `cmamil train`."
        ) from problem
    except (OSError, ValueError, RecursionError) as problem:
        raise RunInvalid(
            f"{path} cannot be read ({problem}); name a complete run directory, or train again."
        ) from problem
    if not isinstance(document, dict):
        raise RunInvalid(f"{path} is not a JSON object; train again.")
    return document


def fold_directory(run: Path, fold: int) -> Path:
    """The directory of one fold."""
    return run / f"fold_{fold}"


def trained_folds(run: Path) -> list[int]:
    """Numbers of the folds that have a checkpoint, ascending."""
    found = (path.parent.name.removeprefix("fold_") for path in run.glob("fold_*/checkpoint.json"))
    return sorted(int(number) for number in found if number.isdecimal())


def save_checkpoint(
    folder: Path, meta: CheckpointMeta, tensors: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    """Write tensors and description into ``folder``; the description comes last."""
    # safetensors writes an array's memory as it lies, whatever its strides.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_atomic(folder / "checkpoint.safetensors", save(contiguous))
    write_json(folder / "checkpoint.json", meta.model_dump(mode="json"))


def load_checkpoint(folder: Path) -> tuple[CheckpointMeta, dict[str, npt.NDArray[np.generic]]]:
    """Read a fold's checkpoint; nothing in it is executed.

    Raises:
        RunInvalid: a file is missing or damaged.
    """
    path = folder / "checkpoint.json"
    meta = parse_document(CheckpointMeta, read_json(path), where=path, error=RunInvalid)
    weights = folder / "checkpoint.safetensors"
    try:
        return meta, load_file(weights)
    except (OSError, SafetensorError) as problem:
        raise RunInvalid(
            f"{weights} cannot be read ({problem}); train this fold again."
        ) from problem


__all__ = [
    "CheckpointMeta",
    "fold_directory",
    "load_checkpoint",
    "read_json",
    "save_checkpoint",
    "slide_mark",
    "trained_folds",
]
