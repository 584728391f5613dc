"""What decides the features of a slide, as one name."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from cmamil_sdk import __version__
from cmamil_sdk.features.encode import decoding_device
from cmamil_sdk.revision import installed_versions
from cmamil_sdk.slides import ReaderName

from ..models import LoadedModel
from .entry import FORMAT_VERSION

_READERS = (
    *("cucim-cu13", "imagecodecs", "numpy", "openslide-bin", "openslide-python", "pillow"),
    "tifffile",
)
"""Packages whose versions may change a pixel."""


def reading_key(model: LoadedModel, mpp: float | None, reader: ReaderName) -> str:
    """sha256 over how a model has a slide read and encoded: all but which slide.

    Args:
        model: whose encoder and recipe.
        mpp: microns per pixel of level 0 in place of the file's, None for the file's.
        reader: as it is configured; which one reads a slide then follows from the slide.
    """
    encoder = model.spec().encoder
    engine = encoder.engine
    (graph_sha256,) = encoder.hashes.values()  # an encoder is one file in every precision
    return _digest(
        {
            "recipe": encoder.recipe.model_dump(mode="json"),
            "mpp": mpp,
            "encoder": graph_sha256,
            "engine": [engine.name, engine.device, engine.precision, engine.version],
            "reader": [reader, decoding_device(reader, engine)],
            "software": _software(),
        }
    )


def feature_key(slide_sha256: str, reading: str) -> str:
    """Name of the features of a slide, 64 hexadecimal digits; ``reading``: :func:`reading_key`."""
    return _digest({"slide": slide_sha256, "reading": reading})


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@functools.cache
def _software() -> dict[str, str]:
    own = {"cmamil-sdk": __version__, "cache": str(FORMAT_VERSION)}
    return own | installed_versions(_READERS)


__all__ = ["feature_key", "reading_key"]
