"""The tile encoders that are networks of torch, by name."""

from __future__ import annotations

import importlib
from pathlib import Path

from torch import nn

from cmamil_sdk.encoders.fit import resize_for
from cmamil_sdk.encoders.info import EncoderInfo, ProjectionInfo
from cmamil_sdk.encoders.projection import SeededProjection
from cmamil_sdk.encoders.registry import TIMM_PREFIX, EncoderSpec, named_encoder
from cmamil_sdk.encoders.weights import LoadedNetwork
from cmamil_sdk.errors import DependencyMissing

from .tile_network import TorchEncoder


def load_network(
    name: str,
    weights: Path | None,
    *,
    projection: bool,
    tile_px: int | None,
    resize_tiles: bool,
) -> TorchEncoder:
    """Load one, as :func:`~cmamil_sdk.export.encoder.load_encoder`."""
    loaded, spec = _loaded(name, weights)
    network = loaded.network
    projected: ProjectionInfo | None = None
    if projection:
        layer = SeededProjection(spec.dim)
        network, projected = nn.Sequential(network, layer).eval(), layer.info
    info = EncoderInfo(
        id=spec.name,
        weights_sha256=loaded.sha256,
        dim=spec.dim if projected is None else projected.dim,
        tile_px=tile_px or spec.tile_px,
        mean=spec.mean,
        std=spec.std,
        mpp=spec.mpp,
        resize=resize_for(spec, tile_px, resize_tiles=resize_tiles),
        projection=projected,
    )
    return TorchEncoder(network, info, loaded.weights_file)


def _loaded(name: str, weights: Path | None) -> tuple[LoadedNetwork, EncoderSpec]:
    """The network and its facts."""
    try:
        if name.startswith(TIMM_PREFIX):
            timm_models = importlib.import_module("cmamil_sdk.encoders.timm_models")
            found: tuple[LoadedNetwork, EncoderSpec] = timm_models.build(name, weights)
            return found
        named = named_encoder(name)
        return importlib.import_module(named.module).build(weights), named.spec
    except ImportError as problem:
        extra = "timm" if name.startswith(TIMM_PREFIX) else "export"
        raise DependencyMissing(
            f"Encoder {name} needs the package {problem.name}; install cmamil-sdk[{extra}]."
        ) from problem


__all__ = ["load_network"]
