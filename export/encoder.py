"""Tile encoders as ONNX graphs: uint8 tiles in, features out, normalisation inside."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from cmamil_sdk import __version__
from cmamil_sdk.encoders.fit import resize_for
from cmamil_sdk.encoders.info import EncoderInfo, ProjectionInfo
from cmamil_sdk.encoders.projection import SeededProjection
from cmamil_sdk.encoders.registry import (
    ENCODERS,
    ONNX_PREFIX,
    TIMM_PREFIX,
    EncoderSpec,
    named_encoder,
)
from cmamil_sdk.engines import Engine
from cmamil_sdk.engines.graphs import graph_in
from cmamil_sdk.engines.parity import (
    GATE_VERSION,
    EncoderParity,
    EncoderReference,
    stored_parity,
)
from cmamil_sdk.errors import DependencyMissing, FieldInvalid, RecipeMismatch, RunInvalid
from cmamil_sdk.files import sha256_of_file, write_json
from cmamil_sdk.runs import read_json

from .graph import OPSET
from .half import write_half
from .reference import load_reference, make_reference, save_reference
from .tile_network import GRAPH_FORM, TorchEncoder
from .user_graph import load_user_graph

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A loaded tile encoder, and who it is."""

    info: EncoderInfo

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``: the reference for the graph."""
        ...

    def features_in_double(self, tiles: UInt8) -> Float32 | None:
        """The same computed in float64; None of a graph, which is what it is."""
        ...

    def write_graph(self, path: Path) -> None:
        """Write the ONNX graph; it appears under ``path`` when it is complete."""
        ...


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder, its graph on disk, and what its features must be like."""

    graph: Path
    encoder: Encoder
    reference: EncoderReference

    @property
    def info(self) -> EncoderInfo:
        """Who it is."""
        return self.encoder.info

    def graph_for(self, precision: str) -> Path:
        """The graph to load in ``precision``, with that in fp16 beside it where it is asked for.

        Raises:
            FieldInvalid: int8, which is calibrated for a bundle.
        """
        if precision == "int8":
            raise FieldInvalid(
                "--precision int8 is calibrated and judged for a bundle, by `cmamil export`; take "
                "features in auto, fp32, bf16 or fp16."
            )
        if precision == "fp16":
            write_half(self.graph, graph_in(self.graph, "fp16"))
        return self.graph

    def parity(self, engine: Engine) -> EncoderParity:
        """How close the graph on ``engine`` is to the encoder; measured once and kept beside it."""
        return stored_parity(self.graph.with_name("parity.json"), engine, self.reference)


def cache_directory() -> Path:
    """Where graphs made on this machine are kept (``CMAMIL_CACHE``, else the user's cache)."""
    base = os.environ.get("CMAMIL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cmamil"


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
    encoder = load_encoder(
        name, weights, projection=projection, tile_px=tile_px, resize_tiles=resize_tiles
    )
    folder = cache_directory() / "encoders" / _cache_key(encoder.info)
    graph, kept = folder / "encoder.onnx", folder / "reference.npz"
    reference = _cached_reference(folder, encoder.info)
    if reference is None:
        reference = export_encoder(encoder, graph)
        save_reference(kept, reference)
        write_json(
            folder / "encoder.json",
            {
                "encoder": encoder.info.model_dump(mode="json"),
                "graph_sha256": sha256_of_file(graph),
                "reference_sha256": sha256_of_file(kept),
            },
        )
    return ExportedEncoder(graph, encoder, reference)


def _cache_key(info: EncoderInfo) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", info.id)
    identity = hashlib.sha256(info.model_dump_json().encode()).hexdigest()
    form = f"opset{OPSET}-form{GRAPH_FORM}-gate{GATE_VERSION}"
    return f"{readable}-{identity[:16]}-{form}-{__version__}"


def _cached_reference(folder: Path, info: EncoderInfo) -> EncoderReference | None:
    """The reference of a cached graph; None if there is no graph or reference that can be trusted."""
    kept = {"graph": folder / "encoder.onnx", "reference": folder / "reference.npz"}
    try:
        stored = read_json(folder / "encoder.json")
        found = {f"{name}_sha256": sha256_of_file(path) for name, path in kept.items()}
    except (OSError, RunInvalid):
        return None
    if stored != {"encoder": info.model_dump(mode="json"), **found}:
        return None
    return load_reference(kept["reference"])


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
    if name.startswith(ONNX_PREFIX):
        return load_user_graph(name, weights, tile_px=tile_px, resize_tiles=resize_tiles)
    network, digest, spec = _torch_network(name, weights)
    projected: ProjectionInfo | None = None
    if projection:
        layer = SeededProjection(spec.dim)
        network, projected = nn.Sequential(network, layer).eval(), layer.info
    info = EncoderInfo(
        id=spec.name,
        weights_sha256=digest,
        dim=spec.dim if projected is None else projected.dim,
        tile_px=tile_px or spec.tile_px,
        mean=spec.mean,
        std=spec.std,
        mpp=spec.mpp,
        resize=resize_for(spec, tile_px, resize_tiles=resize_tiles),
        projection=projected,
    )
    return TorchEncoder(network, info)


def encoder_of(info: EncoderInfo, weights: Path | None = None) -> ExportedEncoder:
    """The encoder that ``info`` describes, from its own weights or those given.

    Raises:
        RecipeMismatch: it comes out as another.
        FieldInvalid, WeightsMissing, DependencyMissing, ParityFailed: as :func:`exported_encoder`.
    """
    exported = exported_encoder(
        info.id,
        weights,
        projection=info.projection is not None,
        tile_px=info.tile_px,
        resize_tiles=info.resize is not None,
    )
    if exported.info.weights_sha256 != info.weights_sha256:
        raise RecipeMismatch(
            f"The run's features were made with weights {info.weights_sha256[:12]}… of {info.id}, these "
            f"are {exported.info.weights_sha256[:12]}…; give the same file with --weights."
        )
    if exported.info != info:
        theirs, ours = info.model_dump(), exported.info.model_dump()
        field = next(name for name in theirs if theirs[name] != ours[name])
        raise RecipeMismatch(
            f"The run's features were made with {field} {theirs[field]} of encoder {info.id}, which is "
            f"{ours[field]} here; extract the features again, and train on them."
        )
    return exported


def export_encoder(encoder: Encoder, path: Path) -> EncoderReference:
    """Write the graph to ``path``; returns what it is to be compared with before it is used.

    Raises:
        ParityFailed: the encoder in float32 is no reference.
    """
    encoder.write_graph(path)
    return make_reference(encoder, encoder.info.tile_px)


def _torch_network(name: str, weights: Path | None) -> tuple[nn.Module, str, EncoderSpec]:
    """The network, the sha256 of its weights, and its facts."""
    try:
        if name.startswith(TIMM_PREFIX):
            timm_models = importlib.import_module("cmamil_sdk.encoders.timm_models")
            loaded: tuple[nn.Module, str, EncoderSpec] = timm_models.build(name, weights)
            return loaded
        named = named_encoder(name)
        network, digest = importlib.import_module(named.module).build(weights)
        return network, digest, named.spec
    except ImportError as problem:
        extra = "timm" if name.startswith(TIMM_PREFIX) else "export"
        raise DependencyMissing(
            f"Encoder {name} needs the package {problem.name}; install cmamil-sdk[{extra}]."
        ) from problem


def _check_projection(name: str) -> None:
    projecting = [known for known, encoder in ENCODERS.items() if encoder.projects]
    if name not in projecting:
        raise FieldInvalid(
            f"--projection seeded belongs to {', '.join(projecting)} and not to {name}; leave it out."
        )


__all__ = [
    "Encoder",
    "ExportedEncoder",
    "cache_directory",
    "encoder_of",
    "export_encoder",
    "exported_encoder",
    "load_encoder",
]
