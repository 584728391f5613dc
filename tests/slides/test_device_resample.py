"""Averaging on a GPU is averaging on the host, tried on a double of CuPy."""

from __future__ import annotations

import numpy as np
import pytest

from cmamil_sdk.slides import device_resample, resample

from ..device_double import CUPY


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_whole_factors_are_the_hosts_to_the_bit(factor: int) -> None:
    pixels = picture(11 * factor, 9 * factor)
    got = device_resample.reduce_by(CUPY.asarray(pixels), factor)
    np.testing.assert_array_equal(CUPY.asnumpy(got), resample.reduce_by(pixels, factor))


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 60, 60),
        (3, 5, 63, 65),
        (0.25, 0.5, 50.25, 50.5),
        (1.7, 0.0, 40.9, 39.2),
        (0, 0, 7, 7),
    ],
)
def test_boxes_are_the_hosts(box: tuple[float, float, float, float]) -> None:
    pixels = picture(70, 70)
    got = device_resample.area_average(CUPY.asarray(pixels), box, 20, 20, CUPY.asarray)
    expected = resample.area_average(pixels, box, 20, 20)
    difference = np.abs(CUPY.asnumpy(got).astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.01
