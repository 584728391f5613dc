"""Connected regions against SciPy, and what is dropped, filled and grown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from cmamil_sdk.tiling.regions import drop_small, fill_holes, grow, label_regions

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def drawn(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


@settings(deadline=None)
@given(MASKS, st.booleans())
def test_regions_are_those_of_scipy(mask, corners):
    labels, sizes = label_regions(mask, corners=corners)
    expected, count = ndimage.label(mask, np.ones((3, 3)) if corners else None)
    assert len(sizes) == count + 1
    assert sizes.tolist() == [0, *np.bincount(labels.ravel(), minlength=count + 1)[1:]]
    pairs = set(zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) == len(pairs)


@pytest.mark.parametrize("kind", ["spiral", "noise", "comb"])
def test_regions_of_large_masks(kind):
    rng = np.random.default_rng(0)
    mask = rng.random((400, 500)) < 0.55
    if kind == "comb":
        mask[:, ::2], mask[:, 1::2], mask[-1] = True, False, True
    if kind == "spiral":
        mask[:] = False
        for ring in range(0, 180, 4):  # each ring opens into the next one
            mask[ring : 400 - ring, ring : 500 - ring] = True
            mask[ring + 2 : 398 - ring, ring + 2 : 498 - ring] = False
            mask[ring + 2 : ring + 4, ring + 3 : ring + 5] = True
    labels, _ = label_regions(mask, corners=False)
    assert labels.max() == ndimage.label(mask)[1]


def test_small_regions_are_dropped():
    mask = drawn("##... ##..# ....# #....")
    assert (drop_small(mask, 3) == drawn("##... ##... ..... .....")).all()
    assert (drop_small(mask, 2) == drawn("##... ##..# ....# .....")).all()
    assert (drop_small(mask, 0) == mask).all()


def test_corners_hold_a_region_together_but_close_no_hole():
    two = drawn("#. .#")
    assert (drop_small(two, 2) == two).all()
    ring = drawn(".#. #.# .#.")
    assert (fill_holes(ring, 1) == drawn(".#. ### .#.")).all()


def test_small_holes_are_filled_and_bays_are_not():
    mask = drawn("####### #.#...# ###...# #.##### ..#####")
    assert (fill_holes(mask, 1) == drawn("####### ###...# ###...# #.##### ..#####")).all()
    assert (fill_holes(mask, 6) == drawn("####### ####### ####### #.##### ..#####")).all()
    assert (fill_holes(mask, 0) == mask).all()


def test_ground_is_kept_where_it_holds_a_seed():
    ground = drawn("##..# ....# #...#")
    seeds = drawn("..... ....# .#...")  # the second lies on no ground
    assert (grow(seeds, ground) == drawn("....# ....# ....#")).all()


@pytest.mark.parametrize("value", [True, False])
def test_masks_of_one_value(value):
    mask = np.full((3, 4), value)
    assert (drop_small(mask, 12) == mask).all()
    assert (fill_holes(mask, 99) == mask).all()
    assert (grow(mask, mask) == mask).all()
