"""Weights of the benchmarks' encoder: random, but scaled as a trained network's are.

``shufflenet_v2_x1_0`` with drawn weights, whose BatchNorm statistics are those of generated tissue.
Without them a random network's features shrink from layer to layer until rounding errors weigh as much.
BatchNorm adds 1 to what it scales, so most units are above ReLU's bend: with 0, as drawn, half are below,
and each layer makes rounding errors larger, as a trained network's do not (bf16: worst cosine about the
mean feature .986 with 0, .994 with 1).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cmamil_sdk.encoders.registry import named_encoder
from cmamil_sdk.encoders.torchvision_ops import import_torchvision
from cmamil_sdk.files import write_atomic
from cmamil_sdk.synthetic.cohort import plan_cohort, render_slide

import_torchvision()

from torchvision.models import shufflenet_v2_x1_0  # noqa: E402

ENCODER = "shufflenet_v2_x1_0"
_TILES_PER_SLIDE = 16
_SLIDES = 4
_NORM_BIAS = 1.0


def write_seeded_weights(path: Path, *, seed: int = 0) -> Path:
    """Write a state dict of ``shufflenet_v2_x1_0`` without its last layer; it follows from ``seed``."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        network: nn.Module = shufflenet_v2_x1_0(weights=None)
        network.fc = nn.Identity()
        _calibrate(network, _images(seed))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    write_atomic(path, file.getvalue())
    return path


def _calibrate(network: nn.Module, images: torch.Tensor) -> None:
    """Set every BatchNorm's bias, and take its mean and variance from ``images`` in one pass."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.bias, _NORM_BIAS)
    network.train()(images)
    network.eval()


def _images(seed: int) -> torch.Tensor:
    """Normalised tiles ``[N, 3, 224, 224]`` from the middle of generated slides."""
    spec = named_encoder(ENCODER).spec
    tiles = np.concatenate(
        [_tiles(render_slide(slide), spec.tile_px) for slide in plan_cohort(seed=seed)[:_SLIDES]]
    )
    mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    return torch.from_numpy((tiles.astype(np.float32) - mean) / std).permute(0, 3, 1, 2)


def _tiles(pixels: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    edge = int(_TILES_PER_SLIDE**0.5)
    top, left = ((size - edge * tile_px) // 2 for size in pixels.shape[:2])
    middle = pixels[top : top + edge * tile_px, left : left + edge * tile_px]
    rows = middle.reshape(edge, tile_px, edge, tile_px, 3)
    return rows.swapaxes(1, 2).reshape(-1, tile_px, tile_px, 3)


__all__ = ["ENCODER", "write_seeded_weights"]
