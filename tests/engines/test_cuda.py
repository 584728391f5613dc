"""What needs a CUDA device; skipped, with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.onnxruntime import cuda_available
from cmamil_sdk.predict import LocalPredictor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_available(), reason="onnxruntime finds no CUDA device"),
]


def test_the_encoder_agrees_with_the_cpu(tiny_bundle: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (7, 224, 224, 3), dtype=np.uint8)
    features = {}
    for device in ("cpu", "cuda:0"):
        engine = load_engine(tiny_bundle / "encoder.onnx", device=device)
        assert engine.info.device == device
        features[device] = engine.infer({"tiles": tiles})["features"]
    a, b = features["cpu"], features["cuda:0"]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.9999


def test_a_prediction_agrees_with_the_cpu(tiny_bundle: Path, synthetic_slide: Path) -> None:
    probabilities = {}
    for device in ("cpu", "cuda:0"):
        predictor = LocalPredictor(Bundle.load(tiny_bundle, device=device))
        probabilities[device] = predictor.predict(synthetic_slide).probabilities
    for label, value in probabilities["cpu"].items():
        assert probabilities["cuda:0"][label] == pytest.approx(value, abs=1e-3)


def test_auto_takes_the_device_and_says_so(tiny_bundle: Path) -> None:
    engine = load_engine(tiny_bundle / "encoder.onnx")
    assert engine.info.device == "cuda:0"
    assert "CUDA" in engine.info.reason
