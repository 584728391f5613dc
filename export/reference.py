"""What an encoder is measured against: the eager model's features of the gate's tiles."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.parity import EncoderReference, feature_cosines
from cmamil_sdk.errors import ParityFailed
from cmamil_sdk.files import write_atomic
from cmamil_sdk.synthetic.tiles import tissue_tiles

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

PROBE_TILES = 6
_BATCH_TILES = 8
_CHECKED_EVERY = 4
_DOUBLE_MIN_COSINE = 0.999999


class ReferenceModel(Protocol):
    """A model that says what the features of tiles are."""

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``, in float32."""
        ...

    def features_in_double(self, tiles: UInt8) -> Float32 | None:
        """The same computed in float64; None of a model that has no such form."""
        ...


@cache
def gate_tiles(tile_px: int) -> UInt8:
    """The tiles of the gate ``[24, px, px, 3]``: 6 of any colour and texture, 18 of drawn tissue.

    Tissue, because its features differ little, so that errors weigh more; the others, because a slide
    may hold anything. Real tiles are not to be had where an encoder is exported.
    """
    return np.concatenate([probe_tiles(tile_px, count=PROBE_TILES), tissue_tiles(tile_px)])


def probe_tiles(tile_px: int, count: int, seed: int = 0) -> UInt8:
    """Seeded tiles ``[count, px, px, 3]`` of many colours and textures, from smooth to noisy."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(40, 250, (count, 1, 1, 3))
    axis = np.linspace(0, 1, tile_px)
    waves = np.sin(
        2 * np.pi * (rng.uniform(0, 20, (count, 1, 1)) * axis[None, :, None] + axis[None, None, :])
    )
    noise = rng.normal(0, 1, (count, tile_px, tile_px, 3)) * rng.uniform(0, 40, (count, 1, 1, 1))
    tiles: UInt8 = np.clip(colour + 30 * waves[..., None] + noise, 0, 255).astype(np.uint8)
    return tiles


def make_reference(model: ReferenceModel, tile_px: int) -> EncoderReference:
    """The gate's tiles and what the model makes of them in float32, some of them checked in float64.

    Raises:
        ParityFailed: the model's float32 features are not those of float64.
    """
    tiles = gate_tiles(tile_px)
    features = features_of(model, tiles)
    exact = model.features_in_double(tiles[::_CHECKED_EVERY])
    if exact is not None:
        worst = feature_cosines(exact, features[::_CHECKED_EVERY])["cosine_worst"]
        if worst < _DOUBLE_MIN_COSINE:
            raise ParityFailed(
                f"The encoder's float32 features are no reference: their cosine to those of float64 is "
                f"{worst:.8f} (at least {_DOUBLE_MIN_COSINE}); check its weights for extreme values."
            )
    return EncoderReference(tiles, features)


def features_of(model: ReferenceModel, tiles: UInt8) -> Float32:
    """The model's features ``[N, D]`` of many tiles ``[N, px, px, 3]``."""
    starts = range(0, len(tiles), _BATCH_TILES)
    return np.concatenate([model.features(tiles[s : s + _BATCH_TILES]) for s in starts])


def save_reference(path: Path, reference: EncoderReference) -> None:
    """Write tiles and features to a ``.npz``, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tiles=reference.tiles, features=reference.features)
    write_atomic(path, buffer.getvalue())


def load_reference(path: Path) -> EncoderReference | None:
    """What :func:`save_reference` wrote; None if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return EncoderReference(stored["tiles"], stored["features"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile):
        return None


__all__ = [
    "ReferenceModel",
    "features_of",
    "gate_tiles",
    "load_reference",
    "make_reference",
    "probe_tiles",
    "save_reference",
]
