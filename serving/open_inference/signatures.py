"""What the models take and give: names, types and shapes of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle.golden import Golden
from cmamil_sdk.bundle.manifest import Manifest

Datatype = Literal["UINT8", "INT64", "FP32", "BYTES"]

_DATATYPES: dict[np.dtype[Any], Datatype] = {
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float32): "FP32",
}


@dataclass(frozen=True)
class Tensor:
    """One input or output; -1 in ``shape`` is an axis of any length from 1."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Signature:
    """The tensors of one model, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def encoder_signature(manifest: Manifest) -> Signature:
    """Tiles to features."""
    px, dim = manifest.encoder.tile_px, manifest.encoder.dim
    tiles = Tensor("tiles", "UINT8", (-1, px, px, 3))
    return Signature((tiles,), (Tensor("features", "FP32", (-1, dim)),))


def aggregator_signature(manifest: Manifest, golden: Golden) -> Signature:
    """A bag of features, with the index arrays that the graph reads, to all that the graph says.

    Shapes are those of the golden values, but for the axis of the tiles.
    """
    features = [f"features_{name}" for name in manifest.recipe.names]
    inputs = [
        _tensor(name, golden.inputs[name], tile_axis=0)
        for name in (*features, *manifest.index_inputs)
    ]
    outputs = [
        _tensor(name, golden.outputs[name], _tile_axis(name))
        for name in manifest.aggregator_outputs
    ]
    return Signature(tuple(inputs), tuple(outputs))


def slide_signature(manifest: Manifest) -> Signature:
    """The address of a slide to its label and the probabilities of all labels."""
    return Signature(
        (Tensor("slide_uri", "BYTES", (1,)), Tensor("options", "BYTES", (1,), optional=True)),
        (
            Tensor("label", "BYTES", (1,)),
            Tensor("probabilities", "FP32", (len(manifest.labels),)),
        ),
    )


def _tensor(name: str, value: npt.NDArray[Any], tile_axis: int | None) -> Tensor:
    shape = tuple(-1 if axis == tile_axis else size for axis, size in enumerate(value.shape))
    return Tensor(name, _DATATYPES[value.dtype], shape)


def _tile_axis(output: str) -> int | None:
    """The axis of an aggregator's output along which the tiles lie; None if it has none."""
    kind = output.removeprefix("coarse_").partition("_")[0]
    return {"attention": 1, "contribution": 0}.get(kind)


__all__ = [
    "Datatype",
    "Signature",
    "Tensor",
    "aggregator_signature",
    "encoder_signature",
    "slide_signature",
]
