"""What training needs of the place where features lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.tiling.recipe import TilingRecipe

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """How features were made, as far as their files say; features of equal origin go together.

    Attributes:
        scales: their names, coarse to fine.
        dim: width D of a feature.
        recipe_key: sha256 of what must be equal in evaluation.
        recipe: which pixels were read, at these scales; None where the files do not say.
        encoder: what turned them into features; None where the files do not say.
    """

    scales: tuple[str, ...]
    dim: int
    recipe_key: str
    recipe: TilingRecipe | None
    encoder: EncoderInfo | None

    @classmethod
    def unknown(cls, features: Mapping[str, Float32]) -> Origin:
        """Of features in files of other tools: only scales and width are known."""
        scales = tuple(features)
        dim = int(features[scales[0]].shape[1])
        document = json.dumps({"scales": scales, "dim": dim}, sort_keys=True)
        key = hashlib.sha256(document.encode()).hexdigest()
        return cls(scales, dim, key, recipe=None, encoder=None)


@dataclass(frozen=True)
class SlideFeatures:
    """All tiles of one slide.

    Attributes:
        features: per scale, coarse to fine, ``[n >= 1, D]`` float32, finite.
        index: int64 arrays of the nested grid, as ``Bag.index_arrays`` makes them; empty where
            parents are unknown.
        parents_known: whether its tiles are tied together across scales.
        origin: how they were made.
    """

    features: Mapping[str, Float32]
    index: Mapping[str, Int64]
    parents_known: bool
    origin: Origin


class Layout(Protocol):
    """Features of many slides on disk, in one arrangement."""

    @property
    def place(self) -> Path:
        """The folder to name in messages."""

    @property
    def slides(self) -> Collection[str]:
        """Ids of all slides that have features."""

    def file(self, slide: str) -> Path:
        """The (first) file of a slide, to name in messages."""

    def read(self, slide: str) -> SlideFeatures:
        """Read and check one slide.

        Raises:
            FeatureFileInvalid: a file is damaged, empty, not finite, or of another form.
            FeatureFileUnreadable: this process may not read a file.
            NoTissue: the slide has no tiles, because it has no tissue.
            ScaleMismatch: the features lack a wanted scale.
        """

    def fingerprint(self, slide: str) -> str:
        """Text that is another when the slide's features are others."""


__all__ = ["Float32", "Int64", "Layout", "Origin", "SlideFeatures"]
