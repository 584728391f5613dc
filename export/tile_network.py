"""A torch network as a tile encoder: uint8 tiles in, features out, normalisation inside."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.encoders.resize import resize_matrix

from .graph import export_graph

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_MAX_BATCH = 4096
_EXAMPLE_TILES = 3


class EncoderGraph(nn.Module):
    """Tiles ``[B, px, px, 3]`` uint8 -> features ``[B, D]`` float32."""

    mean: Tensor
    std: Tensor
    resize: Tensor | None

    def __init__(self, network: nn.Module, info: EncoderInfo) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.AdaptiveAvgPool2d):
                module.register_forward_pre_hook(_contiguous)
        self.register_buffer("mean", torch.tensor(info.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, 3, 1, 1))
        matrix = None
        if info.resize is not None:
            matrix = resize_matrix(info.tile_px, info.resize.network_px, info.resize.interpolation)
        self.register_buffer("resize", matrix)

    def forward(self, *tiles: Tensor) -> tuple[Tensor]:
        """One tensor in, one out; variadic because all exported graphs are."""
        # Cast first: TensorRT can do nothing else with uint8.
        images = tiles[0].to(self.mean.dtype).permute(0, 3, 1, 2)
        if self.resize is not None:
            images = (self.resize @ images @ self.resize.T).clamp(0.0, 255.0)
        return (self.network((images - self.mean) / self.std),)


def _contiguous(_pool: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """In a graph, where a pool would gather its answer to keep channels last, as they lie in memory."""
    if not torch.compiler.is_exporting():
        return None
    return tuple(image.contiguous() for image in images)


class TorchEncoder:
    """A network in eval mode, normalised images ``[B, 3, H, W]`` to ``[B, D]``, and who it is.

    ``weights_file`` holds its tensors, all of them.
    """

    def __init__(
        self, network: nn.Module, info: EncoderInfo, weights_file: Path | None = None
    ) -> None:
        self.network = network
        self.info = info
        self.weights_file = weights_file
        self._graph = EncoderGraph(network, info).eval()

    def features(self, tiles: UInt8) -> Float32:
        """Features ``[B, D]`` of tiles ``[B, px, px, 3]``, by torch."""
        with torch.inference_mode():
            features: Float32 = self._graph(torch.from_numpy(tiles))[0].numpy()
        return features

    def features_in_double(self, tiles: UInt8) -> Float32:
        """The same computed in float64, by a copy of the network."""
        exact = copy.deepcopy(self._graph).double()
        with torch.inference_mode():
            features: Float32 = exact(torch.from_numpy(tiles))[0].float().numpy()
        return features

    def write_graph(self, path: Path) -> None:
        """Export to ``path``; only the batch is dynamic."""
        px = self.info.tile_px
        export_graph(
            self._graph,
            (torch.zeros(_EXAMPLE_TILES, px, px, 3, dtype=torch.uint8),),
            path,
            inputs={"tiles": {0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)}},
            outputs=["features"],
            argument="tiles",
        )


__all__ = ["EncoderGraph", "TorchEncoder"]
