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
from cmamil_sdk.features.file import UNREADABLE

from .base import Float32

_DAMAGED = (EOFError, SyntaxError, tokenize.TokenError)
"""What numpy and torch raise on a damaged file, beside what h5py does."""

_READABLE = "an array of floating-point numbers [N tiles, D]"


def read_array(path: Path) -> Float32:
    """Tile features ``[N >= 1, D >= 1]`` as float32.

    ``.npy``: an array; ``.pt``: a tensor; ``.h5``: a dataset ``features``, which may have a leading
    axis of length 1 (CLAM, TRIDENT). Nothing in a file is executed.

    Raises:
        FeatureFileInvalid: unreadable, pickled, not floating-point, of another rank, empty, or a
            value is NaN or infinite.
    """
    try:
        array = _READERS[path.suffix](path)
    except pickle.UnpicklingError as problem:
        raise FeatureFileInvalid(
            f"{path} is no plain tensor, and pickled objects are not loaded because they can run "
            "code; save the features with torch.save as a tensor [N, D]."
        ) from problem
    except (*UNREADABLE, *_DAMAGED) as problem:
        raise _refused(path, f"cannot be read ({_first_sentence(problem)})") from problem
    if array.dtype.kind != "f":
        raise _refused(path, f"holds values of type {array.dtype}")
    if array.ndim != 2 or 0 in array.shape:
        raise _refused(path, f"holds an array of shape {array.shape}")
    with np.errstate(over="ignore"):
        features = array.astype(np.float32)
    if not np.isfinite(features).all():
        raise FeatureFileInvalid(
            f"{path}: a feature is NaN, infinite or beyond float32; extract the slide again."
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
        raise TypeError(f"it holds a {type(tensor).__name__}, not a tensor")
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.detach().numpy()


def _read_h5(path: Path) -> np.ndarray[Any, Any]:
    with h5py.File(path, "r") as file:
        features = file.get("features")
        if not isinstance(features, h5py.Dataset):
            raise LookupError(f"it has no dataset 'features', only {', '.join(file) or 'nothing'}")
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
