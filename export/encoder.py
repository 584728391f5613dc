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
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import DependencyMissing, FieldInvalid, RecipeMismatch, RunInvalid
from cmamil_sdk.files import sha256_of_file, write_json
from cmamil_sdk.runs import read_json

from .graph import OPSET
from .parity import encoder_parity
from .tile_network import GRAPH_FORM, TorchEncoder
from .user_graph import load_user_graph

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_PROBE_TILES = 16


class Encoder(Protocol):
    """A loaded tile encoder, and who it is."""

    info: EncoderInfo

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``: the reference for the graph."""
        ...

    def write_graph(self, path: Path) -> None:
        """Write the ONNX graph; it appears under ``path`` when it is complete."""
        ...


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder, its graph on disk, and how well the graph reproduces it."""

    graph: Path
    encoder: Encoder
    parity: dict[str, float]

    @property
    def info(self) -> EncoderInfo:
        """Who it is."""
        return self.encoder.info


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
    """The graph of an encoder, exported once per identity and cached.

    Args:
        name, weights, projection, tile_px, resize_tiles: as :func:`load_encoder`.

    Raises:
        FieldInvalid, WeightsMissing, DependencyMissing: as :func:`load_encoder`.
        ParityFailed: the graph does not reproduce the network.
    """
    encoder = load_encoder(
        name, weights, projection=projection, tile_px=tile_px, resize_tiles=resize_tiles
    )
    folder = cache_directory() / "encoders" / _cache_key(encoder.info)
    graph, sidecar = folder / "encoder.onnx", folder / "encoder.json"
    parity = _cached_parity(graph, sidecar, encoder.info)
    if parity is None:
        parity = export_encoder(encoder, graph)
        write_json(
            sidecar,
            {
                "encoder": encoder.info.model_dump(mode="json"),
                "graph_sha256": sha256_of_file(graph),
                "parity": parity,
            },
        )
    return ExportedEncoder(graph, encoder, parity)


def _cache_key(info: EncoderInfo) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", info.id)
    identity = hashlib.sha256(info.model_dump_json().encode()).hexdigest()
    return f"{readable}-{identity[:16]}-opset{OPSET}-form{GRAPH_FORM}-{__version__}"


def _cached_parity(graph: Path, sidecar: Path, info: EncoderInfo) -> dict[str, float] | None:
    """The parity report of a cached graph; None if there is none that can be trusted."""
    if not (sidecar.is_file() and graph.is_file()):
        return None
    try:
        stored = read_json(sidecar)
    except RunInvalid:
        return None
    parity: dict[str, float] | None = stored.get("parity")
    same = stored.get("encoder") == info.model_dump(mode="json")
    return parity if same and stored.get("graph_sha256") == sha256_of_file(graph) else None


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


def export_encoder(encoder: Encoder, path: Path) -> dict[str, float]:
    """Write the graph to ``path`` and compare it with the encoder; returns the parity report.

    Raises:
        ParityFailed: the graph does not reproduce the encoder.
    """
    encoder.write_graph(path)
    tiles = probe_tiles(encoder.info.tile_px, count=_PROBE_TILES)
    engine = load_engine(path, engine="onnxruntime", device="cpu")
    return encoder_parity(encoder.features(tiles), engine.infer({"tiles": tiles})["features"])


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


__all__ = [
    "Encoder",
    "ExportedEncoder",
    "cache_directory",
    "encoder_of",
    "export_encoder",
    "exported_encoder",
    "load_encoder",
    "probe_tiles",
]
