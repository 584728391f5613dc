"""CMA-MIL's encoder: torchvision's network up to its pooled features, and its weights."""

from __future__ import annotations

import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.projection import SeededProjection  # noqa: E402
from cmamil_sdk.encoders.torchvision_ops import import_torchvision  # noqa: E402
from cmamil_sdk.errors import FieldInvalid, WeightsMissing  # noqa: E402
from cmamil_sdk.export.encoder import exported_encoder, load_encoder  # noqa: E402
from cmamil_sdk.export.reference import probe_tiles  # noqa: E402
from cmamil_sdk.files import sha256_of_file  # noqa: E402

NAME = "shufflenet_v2_x1_0"
URL = "https://download.pytorch.org/models/shufflenetv2_x1-5666bf0f80.pth"


def torchvision_forward(weights: Path, tiles: np.ndarray) -> np.ndarray:
    """What torchvision's own network and transforms compute in front of its classifier."""
    import_torchvision()
    from torchvision import models, transforms

    network = models.shufflenet_v2_x1_0()
    network.load_state_dict(torch.load(weights, weights_only=True))
    seen: list[torch.Tensor] = []
    network.fc.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    prepare = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    with torch.inference_mode():
        network.eval()(torch.stack([prepare(Image.fromarray(tile)) for tile in tiles]))
    return seen[0].numpy()


def test_features_are_those_of_torchvision(shufflenet_weights: Path) -> None:
    encoder = load_encoder(NAME, shufflenet_weights)
    assert (encoder.info.dim, encoder.info.tile_px, encoder.info.mpp) == (1024, 224, None)
    assert encoder.info.weights_sha256 == sha256_of_file(shufflenet_weights)
    tiles = probe_tiles(224, count=4, seed=5)
    expected = torchvision_forward(shufflenet_weights, tiles)
    assert expected.shape == (4, 1024) and expected.std() > 0.1
    np.testing.assert_allclose(encoder.features(tiles), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.realdata
def test_graph_and_torchvision_agree_on_real_tiles(
    shufflenet_weights: Path, real_data: Path
) -> None:
    files = sorted((real_data / "tiles" / "breakhis-400x").rglob("*.png"))
    tiles = np.stack(
        [
            np.asarray(Image.open(path).convert("RGB"))[y : y + 224, x : x + 224]
            for path in files
            for y, x in ((0, 0), (200, 400))
        ]
    )
    assert len(tiles) == 16
    exported = exported_encoder(NAME, shufflenet_weights)
    from cmamil_sdk.engines import load_engine

    expected = torchvision_forward(shufflenet_weights, tiles)
    for engine in ("auto", "torch"):
        loaded = load_engine(exported.graph, engine=engine, device="cpu")
        got = loaded.infer({"tiles": tiles})["features"]
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((got * expected).sum(axis=1) / norms).min() >= 0.99999


def test_weights_without_the_classifier_are_the_same_network(
    shufflenet_weights: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = torch.load(shufflenet_weights, weights_only=True)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    tiles = probe_tiles(224, count=1)
    whole, other = (
        load_encoder(NAME, path) for path in (shufflenet_weights, tmp_path / "headless.safetensors")
    )
    np.testing.assert_array_equal(whole.features(tiles), other.features(tiles))
    assert whole.info.weights_sha256 != other.info.weights_sha256


def test_weights_that_lack_a_tensor_are_refused(shufflenet_weights: Path, tmp_path: Path) -> None:
    state = torch.load(shufflenet_weights, weights_only=True)
    del state["conv5.0.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(FieldInvalid, match=r"less\.pth.*conv5\.0\.weight"):
        load_encoder(NAME, tmp_path / "less.pth")


def offline(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(hub))


def test_without_network_and_file_nothing_is_made_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    offline(monkeypatch, tmp_path)
    with pytest.raises(WeightsMissing) as refused:
        load_encoder(NAME)
    place = tmp_path / "hub" / "checkpoints" / "shufflenetv2_x1-5666bf0f80.pth"
    for part in (URL, str(place), "--weights FILE", "no route to host"):
        assert part in str(refused.value)


def test_other_weights_under_the_published_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shufflenet_weights: Path
) -> None:
    offline(monkeypatch, tmp_path)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / shufflenet_weights.name).write_bytes(shufflenet_weights.read_bytes())
    with pytest.raises(WeightsMissing, match="5666bf0f80"):
        load_encoder(NAME)


def test_the_projection_is_a_linear_layer_and_relu_that_never_changes(
    shufflenet_weights: Path,
) -> None:
    tiles = probe_tiles(224, count=3)
    plain = load_encoder(NAME, shufflenet_weights)
    projected = load_encoder(NAME, shufflenet_weights, projection=True)
    assert projected.info.projection is not None
    assert projected.info.dim == projected.info.projection.dim == 512
    layer = SeededProjection(1024)
    weight, bias = (p.detach().numpy() for p in (layer.linear.weight, layer.linear.bias))
    expected = np.maximum(plain.features(tiles) @ weight.T + bias, 0)
    np.testing.assert_allclose(projected.features(tiles), expected, rtol=1e-3, atol=1e-4)
    assert 0.2 < (expected == 0).mean() < 0.8


def test_the_projection_follows_from_its_seed() -> None:
    first, again, other = (SeededProjection(1024, seed=seed) for seed in (0, 0, 1))
    assert first.info == again.info != other.info
    # of the raw output of PCG64, which is fixed: features of all machines are comparable
    assert first.info.sha256 == "45b9c7027ac8eb615ae02932db0e2aada1496ac738fb75f9d16d1a2e9365171b"
    weight = first.linear.weight.detach()
    assert weight.abs().max() <= 1 / 32 and weight.std() == pytest.approx(1 / 32 / 3**0.5, rel=0.01)


def test_other_encoders_have_no_projection() -> None:
    with pytest.raises(FieldInvalid, match=r"belongs to shufflenet_v2_x1_0"):
        load_encoder("efficientnet_lite0", projection=True)
