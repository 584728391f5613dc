"""What needs a CUDA device and a torch that computes on it; skipped, with the reason, elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cmamil_sdk.bundle import Bundle  # noqa: E402
from cmamil_sdk.bundle.golden import read_golden  # noqa: E402
from cmamil_sdk.engines import load_engine  # noqa: E402
from cmamil_sdk.engines.parity import measure_encoder  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path):
    return read_golden(tiny_bundle, Bundle.load(tiny_bundle, device="cpu").manifest).encoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_passes_its_gate(tiny_bundle: Path, reference, precision, record_property):
    engine = load_engine(
        tiny_bundle / "encoder.onnx", engine="torch", device="cuda:0", precision=precision
    )
    parity = measure_encoder(engine, reference)
    record_property("cosine_worst", round(parity.cosine_worst, 6))
    record_property("centred_cosine_worst", round(parity.centred_cosine_worst, 6))
    assert parity.passed, parity.missed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tiles_on_the_device_are_taken_there(tiny_bundle: Path, precision, record_property):
    graph = tiny_bundle / "encoder.onnx"
    engine = load_engine(graph, engine="torch", device="cuda:0", precision=precision)
    tiles = np.random.default_rng(0).integers(0, 256, (140, 224, 224, 3), dtype=np.uint8)
    on_device = torch.from_numpy(tiles).to("cuda:0")
    for n in (1, 8, 9, 64, 140, 8):
        expected = engine.infer({"tiles": tiles[:n]})["features"]
        got = engine.infer({"tiles": on_device[:n]})["features"]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    started = time.perf_counter()
    for _ in range(10):
        engine.infer({"tiles": on_device[:128]})
    record_property("tiles_per_s", round(1280 / (time.perf_counter() - started)))


def test_a_bundle_is_served_by_it(tiny_bundle: Path):
    bundle = Bundle.load(tiny_bundle, engine="torch", device="cuda:0")
    assert bundle.engine_label.startswith("torch-cuda-")
