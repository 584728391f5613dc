"""Ink is found, stained tissue is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.tiling.pens import pen_marks

INKS = {
    "black": (24, 20, 14),
    "blue": (30, 60, 170),
    "green": (34, 136, 118),
    "red": (208, 60, 90),
}
# Ruifrok and Johnston 2001: optical densities of red, green and blue light.
HAEMATOXYLIN, EOSIN = np.array([0.650, 0.704, 0.286]), np.array([0.072, 0.990, 0.105])
DAB = np.array([0.268, 0.570, 0.776])


def stained(*amounts: tuple[np.ndarray, float]) -> np.ndarray:
    density = sum(vector * amount for vector, amount in amounts)
    return np.round(255 * 10.0**-density).astype(np.uint8)


def glass() -> np.ndarray:
    return np.full((60, 80, 3), 243, dtype=np.uint8)


@pytest.mark.parametrize("ink", INKS)
def test_a_stroke_of_ink_is_found_exactly(ink):
    rgb, stroke = glass(), np.zeros((60, 80), dtype=bool)
    stroke[20:30, 5:70] = True
    rgb[stroke] = INKS[ink]
    assert (pen_marks(rgb, cell_um=10, min_um2=50_000) == stroke).all()


def test_a_speck_is_no_mark_of_a_pen():
    rgb = glass()
    rgb[20:30, 20:30] = INKS["blue"]  # 100 cells of 100 um2
    assert pen_marks(rgb, cell_um=10, min_um2=10_000).sum() == 100
    assert not pen_marks(rgb, cell_um=10, min_um2=10_001).any()
    assert not pen_marks(rgb, cell_um=9, min_um2=10_000).any()


def test_faint_ink_counts_beside_plain_ink_only():
    rgb, faint = glass(), (175, 205, 205)
    rgb[5:15, 5:15] = INKS["green"]
    rgb[15:25, 5:15] = rgb[40:50, 50:60] = faint
    found = pen_marks(rgb, cell_um=10, min_um2=0)
    assert found[5:25, 5:15].all()
    assert found.sum() == 200


@given(st.floats(0, 1.5), st.floats(0, 1.5))
def test_no_mixture_of_haematoxylin_and_eosin_is_ink(haematoxylin, eosin):
    tissue = stained((HAEMATOXYLIN, haematoxylin), (EOSIN, eosin))
    rgb = np.broadcast_to(tissue, (8, 8, 3))
    assert not pen_marks(rgb, cell_um=8, min_um2=0).any()


@given(st.floats(0, 1.2))
def test_brown_is_no_ink(amount):
    rgb = np.broadcast_to(stained((DAB, amount)), (8, 8, 3))
    assert not pen_marks(rgb, cell_um=8, min_um2=0).any()
