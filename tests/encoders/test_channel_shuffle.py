"""ShuffleNet without its shuffles computes the same."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.channel_shuffle import fold_shuffles  # noqa: E402
from cmamil_sdk.encoders.torchvision_ops import import_torchvision  # noqa: E402
from cmamil_sdk.export.encoder import exported_encoder  # noqa: E402


def drawn(name: str) -> torch.nn.Module:
    """The network with drawn weights and norms, so that every channel differs from every other."""
    import_torchvision()
    from torchvision import models

    torch.manual_seed(3)
    network = getattr(models, name)(weights=None).double().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_var):
                values.data.uniform_(0.5, 1.5)
            module.running_mean.data.uniform_(-0.5, 0.5)
    return network


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"])
def test_the_same_features_to_the_last_digits(name: str) -> None:
    network = drawn(name)
    folded = copy.deepcopy(network)
    fold_shuffles(folded)
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), network(images), rtol=1e-11, atol=1e-11)


def test_the_graph_moves_channels_no_more(shufflenet_weights: Path) -> None:
    graph = onnx.load(exported_encoder("shufflenet_v2_x1_0", shufflenet_weights).graph).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Transpose") == 1, "that of the tiles, which come with channels last"
    assert "Reshape" not in kinds
