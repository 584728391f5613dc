"""Networks of timm: all their weights from one file, or none."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.torchvision_ops import import_torchvision  # noqa: E402

import_torchvision()
timm = pytest.importorskip("timm")

from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.parity import measure_encoder  # noqa: E402
from cmamil_sdk.errors import DependencyMissing, FieldInvalid, WeightsMissing  # noqa: E402
from cmamil_sdk.export.encoder import export_encoder, load_encoder  # noqa: E402
from cmamil_sdk.export.reference import probe_tiles  # noqa: E402
from cmamil_sdk.files import sha256_of_file  # noqa: E402

MODEL = "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of the model with its classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(MODEL, pretrained=False)
    path = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def own_features(weights: Path, tiles: np.ndarray) -> np.ndarray:
    """Pooled features as timm computes them, behind its own transforms."""
    from PIL import Image

    network = timm.create_model(MODEL, pretrained=False)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval().reset_classifier(0)
    config = timm.data.resolve_model_data_config(network) | {"crop_pct": 1.0}
    prepare = timm.data.create_transform(**config)
    with torch.inference_mode():
        return network(torch.stack([prepare(Image.fromarray(tile)) for tile in tiles])).numpy()


def test_facts_and_features_are_those_of_timm(weights: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"timm:{MODEL}", weights)
    info = encoder.info
    assert (info.id, info.tile_px, info.dim) == (f"timm:{MODEL}", 160, 64)
    assert info.mean == info.std == (127.5, 127.5, 127.5)
    assert info.weights_sha256 == sha256_of_file(weights)
    tiles = probe_tiles(160, count=5, seed=2)
    expected = own_features(weights, tiles)
    np.testing.assert_allclose(encoder.features(tiles), expected, rtol=1e-3, atol=1e-4)
    reference = export_encoder(encoder, tmp_path / "encoder.onnx")
    graph = load_engine(tmp_path / "encoder.onnx", device="cpu")
    assert measure_encoder(graph, reference).passed
    in_torch = load_engine(tmp_path / "encoder.onnx", engine="torch", device="cpu")
    assert measure_encoder(in_torch, reference).passed
    got = graph.infer({"tiles": tiles[:1]})["features"]
    np.testing.assert_allclose(got, expected[:1], rtol=1e-3, atol=1e-3)


def changed(weights: Path, path: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of the weights with some tensors replaced, or removed where None."""
    state = torch.load(weights, weights_only=True)
    for name, tensor in tensors.items():
        del state[name.replace("__", ".")]
        if tensor is not None:
            state[name.replace("__", ".")] = tensor
    torch.save(state, path)
    return path


def test_a_classifier_of_its_own_or_none_makes_no_difference(weights: Path, tmp_path: Path) -> None:
    tiles = probe_tiles(160, count=2)
    expected = load_encoder(f"timm:{MODEL}", weights).features(tiles)
    other = {"head__weight": torch.zeros(7, 64), "head__bias": torch.zeros(7)}
    none = dict.fromkeys(other)
    for number, tensors in enumerate((other, none)):
        path = changed(weights, tmp_path / f"{number}.pth", **tensors)
        got = load_encoder(f"timm:{MODEL}", path).features(tiles)
        np.testing.assert_array_equal(got, expected)


def test_no_tensor_stays_random(weights: Path, tmp_path: Path) -> None:
    path = changed(weights, tmp_path / "less.pth", blocks__1__attn__qkv__weight=None)
    with pytest.raises(FieldInvalid, match=r"less\.pth.*blocks\.1\.attn\.qkv\.weight"):
        load_encoder(f"timm:{MODEL}", path)


def test_weights_run_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(FieldInvalid, match="--weights"):
        load_encoder(f"timm:{MODEL}", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_an_unknown_model_gets_a_hint() -> None:
    with pytest.raises(FieldInvalid, match=r"did you mean .*resnet18"):
        load_encoder("timm:resnet_18")
    with pytest.raises(FieldInvalid, match=r"no such weights; did you mean resnet18\.a1_in1k"):
        load_encoder("timm:resnet18.a1_in2k")
    with pytest.raises(FieldInvalid, match=r"no such model; timm.list_models\(\) names them all"):
        load_encoder("timm:")


def test_published_weights_are_fetched_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    fetched: list[str] = []

    def download(url: str, place: str, **_: object) -> None:
        fetched.append(url)
        save_file(torch.load(weights, weights_only=True), place)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    tiles = probe_tiles(160, count=1)
    expected = load_encoder(f"timm:{MODEL}", weights).features(tiles)
    for _ in range(2):
        np.testing.assert_array_equal(load_encoder(f"timm:{MODEL}").features(tiles), expected)
    assert fetched == [
        "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    ]


def test_without_a_network_the_error_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(WeightsMissing, match=r"test_vit\.r160_in1k/resolve/main.*--weights FILE"):
        load_encoder(f"timm:{MODEL}")


def test_a_model_without_published_weights_is_never_random() -> None:
    bare = next(m for m in timm.list_models() if timm.get_pretrained_cfg(m).hf_hub_id is None)
    with pytest.raises(WeightsMissing, match="names no weights"):
        load_encoder(f"timm:{bare}")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ImportError("gone", name="timm")

    monkeypatch.setattr("cmamil_sdk.export.networks.importlib.import_module", fail)
    with pytest.raises(DependencyMissing, match=r"timm.*cmamil-sdk\[timm\]"):
        load_encoder(f"timm:{MODEL}")
