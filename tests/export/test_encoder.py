"""Exported encoders: parity that notices, and a cache that is never trusted blindly."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.encoders.info import EncoderInfo  # noqa: E402
from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.parity import EncoderReference, measure_encoder  # noqa: E402
from cmamil_sdk.errors import ParityFailed  # noqa: E402
from cmamil_sdk.export import encoder as module  # noqa: E402
from cmamil_sdk.export.encoder import exported_encoder, load_encoder  # noqa: E402
from cmamil_sdk.export.reference import gate_tiles, probe_tiles  # noqa: E402
from cmamil_sdk.export.tile_network import TorchEncoder  # noqa: E402
from cmamil_sdk.files import sha256_of_file, write_atomic  # noqa: E402

INFO = EncoderInfo(
    id="tiny",
    weights_sha256="c" * 64,
    dim=6,
    tile_px=32,
    mean=(120.0, 100.0, 140.0),
    std=(50.0, 60.0, 70.0),
)


def tiny_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 5, stride=2),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    ).eval()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """``exported_encoder("tiny")`` with a cache of its own and no torch; returns the exports made."""
    exports: list[object] = []
    loaded = TorchEncoder(tiny_network(), INFO)

    def counted(encoder, path):
        exports.append(encoder.info)
        write_atomic(path, b"a graph" * len(exports))
        tiles = np.full((2, 32, 32, 3), len(exports), np.uint8)
        return EncoderReference(tiles, np.ones((2, 6), np.float32))

    monkeypatch.setenv("CMAMIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "load_encoder", lambda *_a, **_k: loaded)
    monkeypatch.setattr(module, "export_encoder", counted)
    return exports


def test_the_graph_normalises_by_itself_and_takes_any_batch(tmp_path):
    reference = module.export_encoder(TorchEncoder(tiny_network(), INFO), tmp_path / "encoder.onnx")
    engine = load_engine(tmp_path / "encoder.onnx", device="cpu")
    for count in (1, 2, 9):
        tiles = probe_tiles(32, count=count, seed=count)
        images = (tiles.astype(np.float32) - np.array(INFO.mean, np.float32)) / np.array(
            INFO.std, np.float32
        )
        with torch.inference_mode():
            expected = tiny_network()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        got = engine.infer({"tiles": tiles})["features"]
        assert got.shape == (count, 6)
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert measure_encoder(engine, reference).passed


def test_the_cache_is_used_and_every_damage_noticed(tiny):
    first = exported_encoder("tiny")
    assert (exported_encoder("tiny").reference.tiles == first.reference.tiles).all()
    assert len(tiny) == 1
    sidecar = first.graph.with_name("encoder.json")

    def flip_graph():
        data = bytearray(first.graph.read_bytes())
        data[len(data) // 2] ^= 1
        first.graph.write_bytes(data)

    def other_encoder():
        document = json.loads(sidecar.read_text())
        document["encoder"]["mean"] = [0, 0, 0]
        sidecar.write_text(json.dumps(document))

    kept = first.graph.with_name("reference.npz")
    damages = [
        lambda: kept.write_bytes(b"no archive"),
        kept.unlink,
        flip_graph,
        other_encoder,
        sidecar.unlink,
        first.graph.unlink,
        lambda: sidecar.write_text("{"),
        lambda: sidecar.write_text("[]"),
        lambda: sidecar.write_text("{}"),
    ]
    for number, damage in enumerate(damages):
        damage()
        again = exported_encoder("tiny")
        assert len(tiny) == 2 + number
        assert (again.reference.tiles == len(tiny)).all()
    exported_encoder("tiny")
    assert len(tiny) == 1 + len(damages)


def test_a_known_request_needs_no_network(tiny, monkeypatch, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"tensors")
    info = INFO.model_copy(update={"weights_sha256": sha256_of_file(weights)})
    loads = []

    def load(**_request):
        loads.append(1)
        return TorchEncoder(tiny_network(), info, weights)

    monkeypatch.setattr(module, "load_encoder", load)
    first = exported_encoder("tiny")
    known = exported_encoder("tiny")
    assert (known.graph, known.info, len(loads)) == (first.graph, info, 1)
    np.testing.assert_array_equal(known.reference.features, first.reference.features)
    for _ in range(2):
        exported_encoder("tiny", tile_px=32)
    assert (len(loads), len(tiny)) == (2, 1), "another request, the same encoder"
    weights.write_bytes(b"others")
    exported_encoder("tiny")
    assert len(loads) == 3
    weights.write_bytes(b"tensors")
    exported_encoder("tiny")
    assert len(loads) == 3
    for request in (tmp_path / "cache" / "encoders" / "requests").iterdir():
        request.write_text("{")
    exported_encoder("tiny")
    assert (len(loads), len(tiny)) == (4, 1)
    first.graph.write_bytes(b"damaged")
    exported_encoder("tiny")
    assert (len(loads), len(tiny)) == (5, 2)


def test_the_real_encoder_in_the_bundle_is_the_eager_one(tiny_bundle):
    tiles = probe_tiles(224, count=3, seed=99)
    expected = load_encoder("efficientnet_lite0").features(tiles)
    got = load_engine(tiny_bundle / "encoder.onnx", device="cpu").infer({"tiles": tiles})
    np.testing.assert_allclose(got["features"], expected, rtol=1e-3, atol=1e-3)


def test_a_network_that_float32_cannot_hold_is_no_reference(tmp_path):
    network = tiny_network()
    encoder = TorchEncoder(torch.nn.Sequential(network, Cancelling()), INFO)
    with pytest.raises(ParityFailed, match="no reference"):
        module.export_encoder(encoder, tmp_path / "encoder.onnx")


class Cancelling(torch.nn.Module):
    """What is left of features after adding and taking off far more than they are."""

    def forward(self, features):
        return (features + 1e12) - 1e12


def test_the_tiles_of_the_gate_are_seeded_and_hold_tissue():
    tiles = gate_tiles(64)
    assert (tiles.shape, tiles.dtype) == ((24, 64, 64, 3), np.uint8)
    gate_tiles.cache_clear()
    assert (tiles == gate_tiles(64)).all()
    red, green, blue = tiles[6:].reshape(-1, 3).mean(axis=0)
    assert red > blue > green, "pink and purple"
    assert len({tile.tobytes() for tile in tiles}) == 24


def test_probe_tiles_are_seeded_and_varied():
    tiles = probe_tiles(64, count=12, seed=1)
    assert (tiles == probe_tiles(64, count=12, seed=1)).all()
    assert tiles.mean(axis=(1, 2, 3)).std() > 10
    assert (
        tiles.std(axis=(1, 2)).mean(axis=1).min() < 25 < tiles.std(axis=(1, 2)).mean(axis=1).max()
    )
