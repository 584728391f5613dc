"""The feature file: one HDF5 per slide, complete or absent (docs/feature-file.md)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from cmamil_sdk import __version__
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import (
    FeatureFileInvalid,
    FeatureFileUnreadable,
    ScaleMismatch,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.files import replacing
from cmamil_sdk.tiling.recipe import TilingRecipe

FORMAT_VERSION = 1

_ROWS_AT_ONCE = 4096
_ROOM_BYTES = 2**18
"""More than a file holds beside its arrays: names, attributes and HDF5's own tables."""

UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
)
"""What h5py raises on a damaged file, depending on where it stumbles."""


class FeatureProvenance(BaseModel):
    """Where features come from; stored as attributes of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    sdk_version: str = __version__
    slide_id: str
    slide_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(gt=0, description="level-0 pixels")
    height: int = Field(gt=0, description="level-0 pixels")
    mpp: float = Field(gt=0, description="of level 0, microns per pixel")
    mpp_source: str = Field(description="metadata or override")
    reader: str = Field(description="which one, and why")
    recipe: TilingRecipe
    encoder: EncoderInfo
    engine: str
    engine_reason: str | None = Field(
        None, description="why this engine and precision; not in files of version 0.1.0"
    )
    tiles_failed: int = Field(0, ge=0)
    tissue_mask_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of the slide's mask file, if it had one"
    )
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def recipe_key(self) -> str:
        """sha256 over the tiling recipe and the encoder: files of equal key may be used together."""
        return recipe_key(self.recipe, self.encoder)


def recipe_key(recipe: TilingRecipe, encoder: EncoderInfo) -> str:
    """sha256 over what decides the values in a feature file, apart from the slide."""
    # what an encoder does not have is left out, so that a new field leaves old keys as they are
    encoder_document = encoder.model_dump(mode="json", exclude_none=True)
    document = [recipe.model_dump(mode="json"), encoder_document]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def write_feature_file(path: Path, bag: Bag, provenance: FeatureProvenance) -> None:
    """Write ``bag`` to ``path``; the file appears under its name only when it is complete.

    Raises:
        FeatureFileInvalid: the bag is inconsistent.
        OutputUnwritable: the disk is full, or the folder may not be written to.
    """
    bag.validate()
    with replacing(path) as temporary:
        _make_sure_of_room(temporary, bag)
        try:
            with h5py.File(temporary, "w") as file:
                _fill(file, bag, provenance)
        except RuntimeError as problem:  # h5py's own word for what the system refused
            raise OSError(str(problem)) from problem


def _make_sure_of_room(temporary: Path, bag: Bag) -> None:
    """HDF5 ends the process with a segmentation fault where it finds a disk full (OSError)."""
    arrays: list[Mapping[str, npt.NDArray[Any]]] = [
        bag.features,
        bag.coords,
        bag.parent,
        bag.tissue,
    ]
    needed = _ROOM_BYTES + sum(array.nbytes for kind in arrays for array in kind.values())
    with temporary.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, needed)
        elif shutil.disk_usage(temporary.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill(file: h5py.File, bag: Bag, provenance: FeatureProvenance) -> None:
    for field, value in provenance.model_dump(mode="json", exclude_none=True).items():
        file.attrs[field] = json.dumps(value) if isinstance(value, dict) else value
    for scale in bag.scales:
        group = file.create_group(f"scales/{scale.name}")
        group.attrs["mpp"] = scale.mpp
        features = bag.features[scale.name]
        stored = group.create_dataset("features", shape=features.shape, dtype=features.dtype)
        for start in range(0, len(features), _ROWS_AT_ONCE):  # Ctrl-C is heard between
            stored[start : start + _ROWS_AT_ONCE] = features[start : start + _ROWS_AT_ONCE]
        group.create_dataset("coords", data=bag.coords[scale.name])
        group.create_dataset("parent", data=bag.parent[scale.name])
        group.create_dataset("tissue", data=bag.tissue[scale.name])


def is_feature_file(path: Path) -> bool:
    """Whether ``path`` is an HDF5 file that says it is one of ours, complete or not.

    Raises:
        FeatureFileInvalid: it has the suffix of one, but is not HDF5.
        FeatureFileUnreadable: this process may not read it.
    """
    if path.suffix != ".h5":
        return False
    with _opened(path) as file:
        return "format_version" in file.attrs or "scales" in file


def read_provenance(path: Path) -> FeatureProvenance:
    """Read only the attributes of a feature file.

    Raises:
        FeatureFileInvalid: not a feature file, or of another format version.
        FeatureFileUnreadable: this process may not read it.
    """
    with _opened(path) as file:
        return _provenance(file, path)


def read_feature_file(path: Path) -> tuple[Bag, FeatureProvenance]:
    """Read a feature file; features come back as float32.

    Raises:
        FeatureFileInvalid: not a feature file, of another format version, or inconsistent.
        FeatureFileUnreadable: this process may not read it.
    """
    with _opened(path) as file:
        provenance = _provenance(file, path)
        groups = {name: file[f"scales/{name}"] for name in provenance.recipe.names}
        bag = Bag(
            slide_id=provenance.slide_id,
            scales=provenance.recipe.scales,
            features={n: g["features"][()].astype(np.float32) for n, g in groups.items()},
            coords={n: g["coords"][()] for n, g in groups.items()},
            parent={n: g["parent"][()] for n, g in groups.items()},
            tissue={n: g["tissue"][()] for n, g in groups.items()},
        )
    try:
        bag.validate()
    except FeatureFileInvalid as problem:  # a bag does not know its file
        raise FeatureFileInvalid(f"{path}: {problem}") from problem
    return bag, provenance


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read; whatever goes wrong meanwhile becomes an error that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except PermissionError as problem:
        raise forbidden(path) from problem
    except UNREADABLE as problem:
        raise _unreadable(path, problem) from problem


def forbidden(path: Path) -> FeatureFileUnreadable:
    """The error for features that this process may not read."""
    return FeatureFileUnreadable(
        f"{path} may not be read by this user (permission denied); change its permissions."
    )


def _provenance(file: h5py.File, path: Path) -> FeatureProvenance:
    document = dict(file.attrs)
    version = document.get("format_version")
    if not np.isscalar(version) or version != FORMAT_VERSION:
        raise FeatureFileInvalid(
            f"{path} has feature format version {version}, this version reads {FORMAT_VERSION}; "
            "extract the features again."
        )
    try:
        for field in ("recipe", "encoder"):
            document[field] = json.loads(document[field])
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in document.items()}
        return FeatureProvenance.model_validate(plain)
    except (KeyError, TypeError, ValueError, ScaleMismatch) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> FeatureFileInvalid:
    first_line = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    return FeatureFileInvalid(
        f"{path} is not a complete feature file ({first_line}); extract the features again."
    )


__all__ = [
    "FORMAT_VERSION",
    "UNREADABLE",
    "FeatureProvenance",
    "forbidden",
    "is_feature_file",
    "read_feature_file",
    "read_provenance",
    "recipe_key",
    "write_feature_file",
]
