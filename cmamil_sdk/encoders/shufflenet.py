"""ShuffleNet v2 (x1.0) up to its pooled features: the encoder of CMA-MIL as published.

Source: Ma et al., ShuffleNet V2 (2018); network and ImageNet weights are torchvision's.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cmamil_sdk.encoders.channel_shuffle import fold_shuffles
from cmamil_sdk.encoders.download import fetch_weights
from cmamil_sdk.encoders.torchvision_ops import import_torchvision
from cmamil_sdk.encoders.weights import LoadedNetwork, load_into, read_weights

import_torchvision()

from torchvision.models import ShuffleNet_V2_X1_0_Weights, shufflenet_v2_x1_0  # noqa: E402

_NAME = "shufflenet_v2_x1_0"


def build(weights: Path | None = None) -> LoadedNetwork:
    """Load the encoder; its features ``[B, 1024]`` are the mean of the last map.

    Args:
        weights: a state dict of torchvision's network, with its classifier ``fc`` or without it; None
            takes torchvision's ImageNet weights, which are downloaded on first use.

    Raises:
        FieldInvalid: ``weights`` is missing, or not a state dict of this network.
        WeightsMissing: there is no network to download them through.
    """
    loaded = build_as_published(weights)
    fold_shuffles(loaded.network)
    return loaded


def build_as_published(weights: Path | None = None) -> LoadedNetwork:
    """The same as torchvision has it, shuffles and all, to compare with; raises as :func:`build`."""
    path = weights or _published()
    network = shufflenet_v2_x1_0(weights=None)
    network.fc = nn.Identity()
    state, digest = read_weights(path, _NAME)
    features = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    load_into(network, features, path, _NAME)
    return LoadedNetwork(network.eval(), path, digest)


def _published() -> Path:
    url = ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1.url
    name = url.rpartition("/")[2]
    # torchvision names its files <network>-<first digits of the sha256>.pth
    prefix = name.removesuffix(".pth").rpartition("-")[2]
    return fetch_weights(url, name, _NAME, sha256_prefix=prefix)


__all__ = ["build", "build_as_published"]
