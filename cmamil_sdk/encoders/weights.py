"""Weights of networks in files: read without running anything in them."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import sha256_of_file

_LONGEST = 160
# What torch's unpickler raises depends on where in the bytes it stumbles.
UNLOADABLE = (
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    struct.error,
    SafetensorError,
)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in eval mode, normalised images ``[B, 3, H, W]`` float32 -> features ``[B, D]``.

    Attributes:
        network: with all tensors from one file.
        weights_file: that file.
        sha256: of it.
    """

    network: nn.Module
    weights_file: Path
    sha256: str


def read_weights(path: Path, encoder: str) -> tuple[dict[str, Tensor], str]:
    """Tensors by name in ``path`` (torch.save, or ``.safetensors``), and the sha256 of the file.

    Raises:
        FieldInvalid: the file is missing, or holds no such thing.
    """
    try:
        digest = sha256_of_file(path)
        if path.suffix == ".safetensors":
            return _tensors(load_file(path)), digest
        return _tensors(torch.load(path, map_location="cpu", weights_only=True)), digest
    except UNLOADABLE as problem:
        raise unloadable(path, encoder, problem) from problem


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path, encoder: str) -> None:
    """Put ``state`` into ``network``, every tensor of it and no other.

    Raises:
        FieldInvalid: names or shapes differ; ``path`` is named as the source.
    """
    try:
        network.load_state_dict(state)
    except UNLOADABLE as problem:
        raise unloadable(path, encoder, problem) from problem


def unloadable(path: Path, encoder: str, problem: Exception) -> FieldInvalid:
    """The error for a weights file that does not fit."""
    said = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, pickle.UnpicklingError | KeyError):
        said = (
            "it holds something else than tensors by name"  # torch's own text is about its options
        )
    shown = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    return FieldInvalid(
        f"--weights {path} cannot be loaded into {encoder} ({shown}); "
        "give a state dict of this network."
    )


def _tensors(state: object) -> dict[str, Tensor]:
    if not isinstance(state, Mapping):
        raise TypeError(f"it holds a {type(state).__name__}, not tensors by name")
    return {str(name): _tensor(str(name), value) for name, value in state.items()}


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"it holds a {type(value).__name__} among its tensors")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return value


__all__ = ["UNLOADABLE", "LoadedNetwork", "load_into", "read_weights", "unloadable"]
