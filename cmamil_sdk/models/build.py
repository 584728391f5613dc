"""Make a model from its name and its hyper-parameters, as checkpoints and bundles hold them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cmamil_sdk.errors import ConfigInvalid, DependencyMissing, RunInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.models.names import TORCHMIL, why_no_model
from cmamil_sdk.models.single_scale import GatedABMIL, MaxPooling, MeanPooling

_MODELS: dict[str, type[MILModel]] = {
    model.kind: model for model in (CMAMIL, HMIL, GatedABMIL, MeanPooling, MaxPooling)
}


def build_model(kind: str, hyperparameters: Mapping[str, Any]) -> MILModel:
    """Build the model called ``kind``.

    Raises:
        ConfigInvalid: unknown kind; a hyper-parameter is unknown, missing or out of range.
        DependencyMissing: the model's library is not installed.
    """
    problem = why_no_model(kind)
    if problem is not None:
        raise ConfigInvalid(f"{problem[0].upper()}{problem[1:]}.")
    model = _model_class(kind)
    parameters = inspect.signature(model).parameters
    unknown = sorted(set(hyperparameters) - set(parameters))
    if unknown:
        raise ConfigInvalid(
            f"Model {kind} has no hyper-parameter {', '.join(unknown)}; "
            f"it has {', '.join(parameters)}."
        )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in hyperparameters
    ]
    if missing:
        raise ConfigInvalid(f"Model {kind} needs the hyper-parameters {', '.join(missing)}.")
    return model(**hyperparameters)


def _model_class(kind: str) -> type[MILModel]:
    if not kind.startswith(TORCHMIL):
        return _MODELS[kind]
    try:
        adapter = importlib.import_module("cmamil_sdk.models.torchmil_adapter")
    except ImportError as problem:
        raise DependencyMissing(
            f"Model {kind} needs the package {problem.name}; install cmamil-sdk[train]."
        ) from problem
    models: dict[str, type[MILModel]] = adapter.TORCHMIL_MODELS
    return models[kind]


def restore_model(
    kind: str,
    hyperparameters: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    where: str | Path,
) -> MILModel:
    """Build a model and fill it with the tensors of a checkpoint; it is in evaluation mode.

    Raises:
        ConfigInvalid: as :func:`build_model`.
        RunInvalid: the tensors are not those of this model; ``where`` names the checkpoint.
    """
    model = build_model(kind, hyperparameters)
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as problem:
        raise RunInvalid(
            f"{where} holds other tensors than its description says; train this fold again."
        ) from problem
    return model.eval()


__all__ = ["build_model", "restore_model"]
