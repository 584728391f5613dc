"""Tile encoders as ONNX graphs: uint8 tiles in, features out, normalisation inside."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cmamil_sdk import __version__
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.encoders.registry import encoder_spec
from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import DependencyMissing, RunInvalid
from cmamil_sdk.files import sha256_of_file, write_json
from cmamil_sdk.runs import read_json

from .graph import OPSET, export_graph
from .parity import encoder_parity

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ExportedEncoder:
    """An encoder's graph on disk, who it is, and how well it reproduces the eager network."""

    graph: Path
    info: EncoderInfo
    parity: dict[str, float]


class EncoderGraph(nn.Module):
    """Tiles ``[B, px, px, 3]`` uint8 -> features ``[B, D]`` float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: EncoderInfo) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1))

    def forward(self, *tiles: Tensor) -> tuple[Tensor]:
        """One tensor in, one out; variadic because all exported graphs are."""
        images = tiles[0].permute(0, 3, 1, 2).to(torch.float32)
        return (self.network((images - self.mean) / self.std),)


def cache_directory() -> Path:
    """Where graphs made on this machine are kept (``CMAMIL_CACHE``, else the user's cache)."""
    base = os.environ.get("CMAMIL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cmamil"


def exported_encoder(name: str, weights: Path | None = None) -> ExportedEncoder:
    """The graph of encoder ``name``, exported once per weights and cached under their hash.

    Raises:
        FieldInvalid: unknown encoder, or weights that do not fit it.
        DependencyMissing: the encoder's package is not installed.
        ParityFailed: the graph does not reproduce the network.
    """
    network, info = load_encoder(name, weights)
    folder = cache_directory() / "encoders" / _cache_key(info)
    graph, sidecar = folder / "encoder.onnx", folder / "encoder.json"
    parity = _cached_parity(graph, sidecar, info)
    if parity is not None:
        return ExportedEncoder(graph, info, parity)
    parity = export_encoder(network, info, graph)
    write_json(
        sidecar,
        {
            "encoder": info.model_dump(mode="json"),
            "graph_sha256": sha256_of_file(graph),
            "parity": parity,
        },
    )
    return ExportedEncoder(graph, info, parity)


def _cache_key(info: EncoderInfo) -> str:
    return f"{info.id}-{info.weights_sha256[:16]}-opset{OPSET}-{__version__}"


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


def load_encoder(name: str, weights: Path | None = None) -> tuple[nn.Module, EncoderInfo]:
    """The eager network in eval mode, and its identity.

    Raises:
        FieldInvalid, DependencyMissing: as :func:`exported_encoder`.
    """
    spec = encoder_spec(name)
    try:
        module = importlib.import_module(spec.module)
    except ImportError as problem:
        raise DependencyMissing(
            f"Encoder {name} needs the package {problem.name}; install cmamil-sdk[export]."
        ) from problem
    network, digest = module.build(weights)
    info = EncoderInfo(
        id=spec.name,
        weights_sha256=digest,
        dim=spec.dim,
        tile_px=spec.tile_px,
        mean=spec.mean,
        std=spec.std,
    )
    return network, info


def export_encoder(network: nn.Module, info: EncoderInfo, path: Path) -> dict[str, float]:
    """Write the graph to ``path`` and compare it with the network; returns the parity report.

    Raises:
        ParityFailed: the graph does not reproduce the network.
    """
    module = EncoderGraph(network, info).eval()
    example = torch.from_numpy(probe_tiles(info.tile_px, count=3))
    export_graph(
        module,
        (example,),
        path,
        inputs={"tiles": {0: torch.export.Dim("batch", min=1, max=4096)}},
        outputs=["features"],
        argument="tiles",
    )
    tiles = probe_tiles(info.tile_px, count=16)
    engine = load_engine(path, engine="onnxruntime", device="cpu")
    return encoder_parity(eager_features(module, tiles), engine.infer({"tiles": tiles})["features"])


def eager_features(module: EncoderGraph, tiles: UInt8) -> npt.NDArray[np.float32]:
    """Features ``[B, D]`` of the eager module, the reference."""
    with torch.inference_mode():
        features: npt.NDArray[np.float32] = module(torch.from_numpy(tiles))[0].numpy()
    return features


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
    "EncoderGraph",
    "ExportedEncoder",
    "cache_directory",
    "eager_features",
    "export_encoder",
    "exported_encoder",
    "load_encoder",
    "probe_tiles",
]
