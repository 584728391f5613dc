"""The figures of answers on slides."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from cmamil_sdk.bundle.precisions import EndToEnd
from cmamil_sdk.engines.parity import EncoderParity
from cmamil_sdk.export.end_to_end import mean_auc


def test_auc_is_that_of_training():
    from cmamil_sdk.training.metrics import macro_auc

    rng = np.random.default_rng(0)
    truth = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    scores = rng.integers(1, 5, (8, 3)) + 0.0
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    assert mean_auc(probabilities, truth) == pytest.approx(macro_auc(probabilities, truth))
    assert mean_auc(probabilities, truth[:1].repeat(8)) is None
    assert mean_auc(np.zeros((0, 3)), np.zeros(0, int)) is None


def on_slides(**changes) -> EndToEnd:
    tiles = EncoderParity(
        engine="openvino",
        device="cpu",
        precision="int8",
        version="1",
        processor="a test",
        tiles=9,
        cosine_mean=0.99,
        cosine_worst=changes.pop("cosine_worst", 0.96),
        centred_cosine_mean=0.9,
        centred_cosine_worst=0.8,
    )
    figures = {
        "engine": tiles.label,
        "slides": 4,
        "held_out": True,
        "tiles": tiles,
        "label_flips": 0,
        "probability_change": 0.1,
        "labelled": 4,
        "auc_fp32": 0.9,
        "auc": 0.904,
    }
    return EndToEnd(**(figures | changes))


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, ""),
        ({"auc": None}, ""),
        ({"label_flips": 1}, "label flips 1 (gate 0)"),
        ({"auc": 0.89}, "auc change 0.01 (gate 0.005)"),
        ({"cosine_worst": 0.94}, "cosine worst 0.940000 (gate 0.95) on tiles of the slides"),
    ],
)
def test_int8_is_gated(changes, missed):
    assert on_slides(**changes).missed("int8") == missed


def test_other_precisions_are_reported():
    found = on_slides(label_flips=3, auc=0.5)
    assert found.missed("fp16") == ""
    assert found.auc_change == pytest.approx(0.4)
