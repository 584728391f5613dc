"""Tile encoders as ONNX graphs: uint8 tiles in, features out, normalisation inside."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.encoders.registry import ENCODERS, ONNX_PREFIX
from cmamil_sdk.engines.parity import EncoderReference
from cmamil_sdk.errors import FieldInvalid, RecipeMismatch

from .encoder_cache import (
    EncoderRequest,
    ExportedEncoder,
    graph_folder,
    keep_graph,
    read_graph,
    recall,
    remember,
)
from .reference import make_reference

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A loaded tile encoder, and who it is.

    ``weights_file`` is the one file that its tensors come from; None of a graph, which needs no torch.
    """

    info: EncoderInfo
    weights_file: Path | None

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``: the reference for the graph."""
        ...

    def features_in_double(self, tiles: UInt8) -> Float32 | None:
        """The same computed in float64; None of a graph, which is what it is."""
        ...

    def write_graph(self, path: Path) -> None:
        """Write the ONNX graph; it appears under ``path`` when it is complete."""
        ...


def exported_encoder(
    name: str,
    weights: Path | None = None,
    *,
    projection: bool = False,
    tile_px: int | None = None,
    resize_tiles: bool = False,
) -> ExportedEncoder:
    """The graph of an encoder, exported once per identity and cached; open it with its gate.

    Args:
        name, weights, projection, tile_px, resize_tiles: as :func:`load_encoder`.

    Raises:
        FieldInvalid, WeightsMissing, DependencyMissing: as :func:`load_encoder`.
        ParityFailed: the encoder in float32 is no reference.
    """
    request = EncoderRequest(name, weights, projection, tile_px, resize_tiles)
    known = recall(request)
    if known is not None:
        return known
    encoder = load_encoder(**asdict(request))
    folder = graph_folder(encoder.info)
    exported = read_graph(folder)
    if exported is None or exported.info != encoder.info:
        reference = export_encoder(encoder, folder / "encoder.onnx")
        exported = keep_graph(folder, encoder.info, reference)
    if encoder.weights_file is not None:
        remember(request, encoder.weights_file, exported)
    return exported


def load_encoder(
    name: str,
    weights: Path | None = None,
    *,
    projection: bool = False,
    tile_px: int | None = None,
    resize_tiles: bool = False,
) -> Encoder:
    """Load an encoder.

    Args:
        name: one of this package, ``timm:<name>`` or ``onnx:<file>``.
        weights: a file instead of the encoder's own weights; of ``onnx:``, the file itself.
        projection: put CMA-MIL's seeded projection behind it.
        tile_px: edge of the tiles it is wanted for; None: those it takes.
        resize_tiles: have the graph resize tiles of another size.

    Raises:
        FieldInvalid: an unknown encoder, weights that do not fit it, tiles that it does not take, or a
            projection of another network than CMA-MIL's.
        WeightsMissing: its weights are not here and cannot be downloaded.
        DependencyMissing: its package is not installed.
    """
    if projection:
        _check_projection(name)
    # onnx and torch take seconds to import, and are not needed where the graph is known.
    if name.startswith(ONNX_PREFIX):
        from .user_graph import load_user_graph  # noqa: PLC0415

        return load_user_graph(name, weights, tile_px=tile_px, resize_tiles=resize_tiles)
    from .networks import load_network  # noqa: PLC0415

    return load_network(
        name, weights, projection=projection, tile_px=tile_px, resize_tiles=resize_tiles
    )


def encoder_of(info: EncoderInfo, weights: Path | None = None) -> ExportedEncoder:
    """The graph of the encoder that ``info`` describes, from its own weights or those given.

    Raises:
        RecipeMismatch: it comes out as another.
        FieldInvalid, WeightsMissing, DependencyMissing, ParityFailed: as :func:`exported_encoder`.
    """
    exported = exported_encoder(info.id, weights, **_options_of(info))
    _refuse_other(info, exported.info)
    return exported


def loaded_encoder_of(info: EncoderInfo, weights: Path | None = None) -> Encoder:
    """The encoder itself, for what its graph is compared with; raises as :func:`encoder_of`."""
    encoder = load_encoder(info.id, weights, **_options_of(info))
    _refuse_other(info, encoder.info)
    return encoder


def _options_of(info: EncoderInfo) -> dict[str, Any]:
    return {
        "projection": info.projection is not None,
        "tile_px": info.tile_px,
        "resize_tiles": info.resize is not None,
    }


def _refuse_other(wanted: EncoderInfo, found: EncoderInfo) -> None:
    if found.weights_sha256 != wanted.weights_sha256:
        raise RecipeMismatch(
            f"The run's features were made with weights {wanted.weights_sha256[:12]}… of {wanted.id}, "
            f"these are {found.weights_sha256[:12]}…; give the same file with --weights."
        )
    if found != wanted:
        theirs, ours = wanted.model_dump(), found.model_dump()
        field = next(name for name in theirs if theirs[name] != ours[name])
        raise RecipeMismatch(
            f"The run's features were made with {field} {theirs[field]} of encoder {wanted.id}, which is "
            f"{ours[field]} here; extract the features again, and train on them."
        )


def export_encoder(encoder: Encoder, path: Path) -> EncoderReference:
    """Write the graph to ``path``; returns what it is to be compared with before it is used.

    Raises:
        ParityFailed: the encoder in float32 is no reference.
    """
    encoder.write_graph(path)
    return make_reference(encoder, encoder.info.tile_px)


def _check_projection(name: str) -> None:
    projecting = [known for known, encoder in ENCODERS.items() if encoder.projects]
    if name not in projecting:
        raise FieldInvalid(
            f"--projection seeded belongs to {', '.join(projecting)} and not to {name}; leave it out."
        )


__all__ = [
    "Encoder",
    "ExportedEncoder",
    "encoder_of",
    "export_encoder",
    "exported_encoder",
    "load_encoder",
    "loaded_encoder_of",
]
