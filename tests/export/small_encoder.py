"""An encoder of a few layers, exported in no time."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.info import EncoderInfo, ResizeInfo  # noqa: E402
from cmamil_sdk.export.tile_network import TorchEncoder  # noqa: E402

PX = 32


class SmallNetwork(torch.nn.Module):
    """Convolutions with a residual sum, the mean over places, and a layer of 40 features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 48, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(48)
        self.second = torch.nn.Conv2d(48, 48, 3, padding=1)
        self.last = torch.nn.Linear(48, 40)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.norm(self.first(images)))
        maps = maps + self.second(maps).clamp(-6.0, 6.0)
        features: torch.Tensor = self.last(maps.mean(dim=(2, 3)))
        return features


def small_encoder(*, tile_px: int = PX, network_px: int | None = None) -> TorchEncoder:
    """Seeded; ``network_px``: of the images that tiles are resized to."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork().eval()
    resize = None
    if network_px is not None:
        resize = ResizeInfo(network_px=network_px, interpolation="bilinear")
    info = EncoderInfo(
        id="small",
        weights_sha256="c" * 64,
        dim=40,
        tile_px=tile_px,
        mean=(120.0, 100.0, 140.0),
        std=(50.0, 60.0, 70.0),
        resize=resize,
    )
    return TorchEncoder(network, info)


def write_small_graph(folder: Path, *, tile_px: int = PX, network_px: int | None = None) -> Path:
    """``<folder>/encoder.onnx`` of such an encoder."""
    path = folder / "encoder.onnx"
    small_encoder(tile_px=tile_px, network_px=network_px).write_graph(path)
    return path
