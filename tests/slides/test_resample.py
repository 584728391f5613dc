"""Area averaging against the definition, pixel by pixel."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.slides.resample import area_average, reduce_by


def overlaps(start: float, end: float, n: int) -> np.ndarray:
    """How much of each unit pixel 0..n-1 lies in [start, end)."""
    pixels = np.arange(n)
    return np.clip(np.minimum(end, pixels + 1) - np.maximum(start, pixels), 0.0, 1.0)


def brute_force(pixels: np.ndarray, box, out_w: int, out_h: int) -> np.ndarray:
    """Mean of every cell in float64, straight from the definition."""
    left, top, right, bottom = box
    result = np.zeros((out_h, out_w, 3))
    for row in range(out_h):
        y = [top + (bottom - top) * (row + i) / out_h for i in (0, 1)]
        wy = overlaps(*y, pixels.shape[0])
        for column in range(out_w):
            x = [left + (right - left) * (column + i) / out_w for i in (0, 1)]
            wx = overlaps(*x, pixels.shape[1])
            weight = wy[:, None] * wx[None, :]
            result[row, column] = (pixels * weight[..., None]).sum((0, 1)) / weight.sum()
    return result


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.floats(0, 0.45), st.floats(0, 0.45), st.floats(0.55, 1), st.floats(0.55, 1)),
    st.integers(1, 7),
    st.integers(1, 7),
)
def test_any_box_is_the_mean_of_its_cells(seed, shares, out_w, out_h):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 24, 2)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = tuple(s * edge for s, edge in zip(shares, (width, height, width, height), strict=True))
    got = area_average(pixels, box, out_w, out_h)
    assert got.shape == (out_h, out_w, 3)
    assert got.dtype == np.uint8
    assert np.abs(got - brute_force(pixels, box, out_w, out_h)).max() <= 0.5 + 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_the_path_for_whole_numbers_equals_the_other_within_one_grey_level(seed, factor, w, h):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (h * factor + 3, w * factor + 3, 3), dtype=np.uint8)
    x, y = (int(v) for v in rng.integers(0, 4, 2))
    fast = area_average(pixels, (x, y, x + w * factor, y + h * factor), w, h)
    exact = brute_force(pixels, (x, y, x + w * factor, y + h * factor), w, h)
    rounded = 0.5 if factor in (1, 2, 4) else 1.0  # Pillow divides by a fixed-point reciprocal
    assert np.abs(fast - exact).max() <= rounded + 1e-9
    nudged = area_average(pixels, (x, y, x + w * factor - 1e-7, y + h * factor), w, h)
    assert np.abs(fast.astype(int) - nudged).max() <= 1


def test_a_shift_by_part_of_a_pixel_shows_in_proportion():
    pixels = np.zeros((1, 3, 3), np.uint8)
    pixels[:, 1:] = 200
    values = [area_average(pixels, (s, 0, s + 1, 1), 1, 1)[0, 0, 0] for s in (0, 0.25, 0.5, 1)]
    assert values == [0, 50, 100, 200]


def test_bright_areas_do_not_overflow():
    white = np.full((3000, 64, 3), 255, np.uint8)
    assert (area_average(white, (0.3, 0.7, 63.1, 2999.2), 3, 2) == 255).all()


def test_reduce_by_one_changes_nothing_and_two_averages():
    pixels = np.array([[[0], [4]], [[8], [12]]], np.uint8).repeat(3, axis=2)
    assert (reduce_by(pixels, 1) == pixels).all()
    assert (reduce_by(pixels, 2) == 6).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_reducing_a_cut_equals_cutting_the_reduced(factor):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = reduce_by(pixels, factor)
    part = reduce_by(pixels[8:24, 8:24], factor)
    assert (whole[8 // factor : 24 // factor, 8 // factor : 24 // factor] == part).all()


def test_a_large_area_is_averaged_in_little_memory():
    """Strips keep what is held as floating point small: 40 MB of pixels took 1.4 GB in one piece."""
    pixels = np.full((3600, 3700, 3), 200, dtype=np.uint8)
    pixels[1800:] = 100
    tracemalloc.start()
    try:
        mean = area_average(pixels, (0.5, 0.25, 3699.5, 3599.25), 1900, 1850)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert mean.shape == (1850, 1900, 3)
    assert (mean[0] == 200).all()
    assert (mean[-1] == 100).all()
    assert peak < 100e6
