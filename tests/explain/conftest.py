"""A prediction of 2 + 2 tiles whose evidence is known by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmamil_sdk.predict import Prediction, QualityReport, ScaleMap

BOUNDS = (100, 50, 900, 500)


def scale_map(
    scale: str, size: float, corners: list[list[int]], contribution: list[list[float]]
) -> ScaleMap:
    return ScaleMap(
        scale=scale,
        size=size,
        coords=np.array(corners, dtype=np.int64).reshape(-1, 2),
        attention=np.full(len(corners), 1 / max(1, len(corners)), dtype=np.float32),
        contribution=np.array(contribution, dtype=np.float32).reshape(len(corners), 3),
    )


def with_maps(prediction: Prediction, *maps: ScaleMap) -> Prediction:
    return replace(prediction, maps=maps)


@pytest.fixture
def prediction() -> Prediction:
    """Two 10x tiles side by side, and a 20x tile inside the first and one outside of both."""
    return Prediction(
        slide="case-1",
        label="benign",
        probabilities={"benign": 0.625, "in_situ": 0.25, "invasive": 0.125},
        coarse=None,
        tiles={"10x": 2, "20x": 2},
        quality=QualityReport(4, 4, 0, 0, "image", "it is a picture"),
        mpp=0.5,
        mpp_source="metadata",
        seconds={"total": 1.25},
        engine="onnxruntime-cpu-fp32",
        bundle="tiny/1",
        bundle_sha256="0" * 64,
        top_tiles=(),
        warnings=(),
        maps=(
            scale_map("10x", 448.0, [[100, 50], [548, 50]], [[12, 0, 0], [0, -12, 0]]),
            scale_map("20x", 224.0, [[324, 50], [100, 498]], [[3, 0, 0], [1, 1, 4]]),
        ),
    )
