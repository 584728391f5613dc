"""Index arrays of the nested grid against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import FeatureFileInvalid
from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.tiling.recipe import Scale, parse_scales


def random_parents(rng: np.random.Generator, ratios: list[int]) -> list[np.ndarray]:
    """Parents per scale, no tile with more children than fit, some orphans."""
    parents = [np.full(int(rng.integers(1, 6)), -1)]
    for ratio in ratios:
        slots = np.repeat(np.arange(len(parents[-1])), ratio * ratio)
        orphans = np.full(int(rng.integers(1, 4)), -1)
        pool = rng.permutation(np.concatenate([slots, orphans]))
        parents.append(pool[: int(rng.integers(1, len(pool) + 1))])
    return [p.astype(np.int64) for p in parents]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(2, 3), min_size=1, max_size=3))
def test_children_and_ancestors_are_those_of_a_plain_loop(seed, ratios):
    rng = np.random.default_rng(seed)
    mpp = np.cumprod([1, *reversed(ratios)])[::-1] * 0.5
    scales = [Scale(name=f"s{i}", mpp=float(m)) for i, m in enumerate(mpp)]
    parents = random_parents(rng, ratios)
    arrays = nesting_arrays(scales, {s.name: p for s, p in zip(scales, parents, strict=True)})

    assert set(arrays) == {
        *(f"children_{s.name}" for s in scales[:-1]),
        f"ancestor_{scales[-1].name}",
    }
    for level, ratio in enumerate(ratios):
        got = arrays[f"children_{scales[level].name}"]
        assert got.shape == (len(parents[level]), ratio**2)
        assert got.dtype == np.int64
        for row in range(len(parents[level])):
            children = [i for i, p in enumerate(parents[level + 1]) if p == row]
            assert got[row].tolist() == children + [-1] * (ratio**2 - len(children))
    ancestor = arrays[f"ancestor_{scales[-1].name}"]
    assert ancestor.shape == (len(parents[-1]), 1)
    for row in range(len(parents[-1])):
        at = row
        for parent in reversed(parents[1:]):
            at = parent[at] if at >= 0 else -1
        assert ancestor[row, 0] == at


def test_one_scale_has_no_relatives():
    assert nesting_arrays(parse_scales("20x"), {"20x": np.full(3, -1)}) == {}


def test_a_tile_with_more_children_than_fit():
    parent = {"10x": np.array([-1]), "20x": np.zeros(5, np.int64)}
    with pytest.raises(FeatureFileInvalid, match="5 children where 4 fit"):
        nesting_arrays(parse_scales("10x,20x"), parent)


def test_a_parent_that_does_not_exist():
    parent = {"10x": np.array([-1, -1]), "20x": np.array([0, 2])}
    with pytest.raises(FeatureFileInvalid, match="row 2 does not exist"):
        nesting_arrays(parse_scales("10x,20x"), parent)


def test_all_orphans():
    parent = {"10x": np.array([-1, -1]), "20x": np.array([-1, -1, -1])}
    arrays = nesting_arrays(parse_scales("10x,20x"), parent)
    assert (arrays["children_10x"] == -1).all()
    assert (arrays["ancestor_20x"] == -1).all()
