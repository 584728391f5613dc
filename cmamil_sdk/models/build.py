"""Make a model from its name and its hyper-parameters, as checkpoints and bundles hold them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.hmil import HMIL

_MODELS: dict[str, type[MILModel]] = {CMAMIL.kind: CMAMIL, HMIL.kind: HMIL}


def build_model(kind: str, hyperparameters: Mapping[str, Any]) -> MILModel:
    """Build the model called ``kind``.

    Raises:
        ConfigInvalid: unknown kind; a hyper-parameter is unknown, missing or out of range.
    """
    if kind not in _MODELS:
        raise ConfigInvalid(f"There is no model {kind!r}; choose one of {', '.join(_MODELS)}.")
    model = _MODELS[kind]
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


__all__ = ["build_model"]
