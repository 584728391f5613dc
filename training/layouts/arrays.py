"""Files of other tools that hold one array of tile features."""

from __future__ import annotations

import pickle
import tokenize
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cmamil_sdk.errors import FeatureFileInvalid
from cmamil_sdk.features.bag import not_finite
from cmamil_sdk.features.file import UNREADABLE, forbidden

from .base import Float32

_DAMAGED = (EOFError, SyntaxError, tokenize.TokenError)
"""What numpy and torch raise on a damaged file, beside what h5py does."""

_READABLE = "an array of floating-point numbers [N tiles, D]"


def read_array(path: Path, scale: str) -> Float32:
    """Tile features ``[N >= 1, D >= 1]`` of one scale as float32.

    ``.npy``: an array; ``.pt``: a tensor; ``.h5``: a dataset ``features``, which may have a leading
    axis of length 1 (CLAM, TRIDENT). Nothing in a file is executed.

    Raises:
        FeatureFileUnreadable: this process may not read it.
        FeatureFileInvalid: damaged, pickled, not floating-point, of another rank, empty, or a
            value is NaN or infinite.
    """
    try:
        array = _READERS[path.suffix](path)
    except PermissionError as problem:
        raise forbidden(path) from problem
    except pickle.UnpicklingError as problem:
        raise FeatureFileInvalid(
            f"{path} is cut short or no plain tensor, and pickled objects are not loaded because "
            "they can run code; save the features with torch.save as a tensor [N, D]."
        ) from problem
    except (*UNREADABLE, *_DAMAGED) as problem:
        raise FeatureFileInvalid(
            f"{path} is damaged or cut short ({_first_sentence(problem)}); copy it again, or extract "
            "the slide again."
        ) from problem
    if array.dtype.kind != "f":
        raise _refused(path, f"holds values of type {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise _refused(path, f"holds an array of shape {array.shape}")
    with np.errstate(over="ignore"):
        features = array.astype(np.float32)
    broken = not_finite(features)
    if broken is not None:
        raise FeatureFileInvalid(
            f"{path}, scale {scale}, {broken} in float32; extract the slide again."
        )
    return features


def _read_npy(path: Path) -> np.ndarray[Any, Any]:
    # mapped, so that a damaged header cannot ask for more memory than the file has bytes
    return np.lib.format.open_memmap(path, mode="r")


def _read_pt(path: Path) -> np.ndarray[Any, Any]:
    with warnings.catch_warnings():  # of old pickles; what is read or refused is said here
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensor, torch.Tensor):
        raise _refused(path, f"holds a {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise _refused(path, "holds a sparse tensor")
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.detach().numpy()


def _read_h5(path: Path) -> np.ndarray[Any, Any]:
    with h5py.File(path, "r") as file:
        features = file.get("features")
        if not isinstance(features, h5py.Dataset):
            there = ", ".join(file) or "nothing"
            raise _refused(path, f"has no dataset 'features', only {there}")
        array: np.ndarray[Any, Any] = features[()]
    return array[0] if array.ndim == 3 and len(array) == 1 else array


_READERS = {".npy": _read_npy, ".pt": _read_pt, ".h5": _read_h5}
SUFFIXES = tuple(sorted(_READERS))


def _refused(path: Path, found: str) -> FeatureFileInvalid:
    return FeatureFileInvalid(f"{path} {found}; it must hold {_READABLE}.")


def _first_sentence(problem: BaseException) -> str:
    lines = str(problem).splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(problem).__name__


__all__ = ["SUFFIXES", "read_array"]
