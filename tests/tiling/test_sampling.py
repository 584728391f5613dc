"""The cap on tiles: exact, nested, seeded, and the same whatever else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TileSample, TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.tiling.sampling import sample_tiles

EVERYWHERE = TissueRecipe(method="none")


def grids(seed: int, rows: int, columns: int, steps: tuple[int, ...]) -> list[np.ndarray]:
    """Nested masks, coarse to fine: a tile is kept if one inside it is, or by itself."""
    rng = np.random.default_rng(seed)
    whole = int(np.prod(steps))
    kept = [rng.random((rows * whole, columns * whole)) < rng.random()]
    for step in reversed(steps):
        fine = kept[0]
        above = fine.reshape(fine.shape[0] // step, step, -1, step).any(axis=(1, 3))
        kept.insert(0, above | (rng.random(above.shape) < 0.1))
    return kept


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([(2, 2), (4,), ()]),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
def test_any_sample_is_capped_and_nested(seed, rows, columns, steps, cap, sample_seed):
    kept = grids(seed, rows, columns, steps)
    chosen = sample_tiles(kept, TileSample(max_tiles=cap, seed=sample_seed))
    assert chosen[-1].sum() == min(cap, kept[-1].sum())
    for mine, whole in zip(chosen, kept, strict=True):
        assert not (mine & ~whole).any()
    for step, above, below in zip(steps, chosen[:-1], chosen[1:], strict=True):
        assert not (below & ~above.repeat(step, 0).repeat(step, 1)).any(), "ancestors are kept"
    whole = int(np.prod(steps))
    cut = (kept[-1] & ~chosen[-1]).reshape(rows, whole, columns, whole).any(axis=(1, 3))
    assert (cut & chosen[0]).sum() <= 1, "all but one coarse tile keep what is inside them"


def test_a_larger_cap_takes_the_same_tiles_and_more():
    kept = grids(0, 6, 6, (2, 2))
    caps = [1, 40, 43, 44, 60, 200, int(kept[-1].sum()) - 1]
    samples = [sample_tiles(kept, TileSample(max_tiles=cap, seed=5)) for cap in caps]
    for few, many in itertools.pairwise(samples):
        for fewer, more in zip(few, many, strict=True):
            assert not (fewer & ~more).any()


def test_every_tile_has_the_same_chance():
    kept = [np.ones((5, 4), dtype=bool)]
    taken = sum(sample_tiles(kept, TileSample(max_tiles=5, seed=s))[0] for s in range(4000))
    # 1000 of 4000 expected at each of 20 places, standard deviation 27
    assert (np.abs(taken - 1000) < 5 * 27).all()


def plan_with(slide, scales: str, sample: TileSample | None) -> TilePlan:
    recipe = TilingRecipe(scales=parse_scales(scales), tissue=EVERYWHERE, sample=sample)
    with open_slide(slide) as reader:
        return make_plan(reader, recipe)


def test_a_plan_with_a_cap(synthetic_slide):
    sample = TileSample(max_tiles=20, seed=3)
    plan = plan_with(synthetic_slide, "5x,10x,20x", sample)
    again = plan_with(synthetic_slide, "5x,10x,20x", sample)
    other = plan_with(synthetic_slide, "5x,10x,20x", TileSample(max_tiles=20, seed=4))
    assert plan.counts()["20x"] == 20
    assert plan.scales[-1].index.tolist() == again.scales[-1].index.tolist()
    assert plan.scales[-1].index.tolist() != other.scales[-1].index.tolist()
    assert (plan.scales[-1].parent >= 0).all()


@pytest.mark.parametrize("cap", [63, 1000])
def test_a_cap_that_is_not_reached_changes_nothing(synthetic_slide, cap):
    capped = plan_with(synthetic_slide, "5x,10x,20x", TileSample(max_tiles=cap))
    assert capped.counts() == plan_with(synthetic_slide, "5x,10x,20x", None).counts()


def test_the_tiles_of_a_seed_are_the_same_for_ever(synthetic_slide):
    plan = plan_with(synthetic_slide, "20x", TileSample(max_tiles=4, seed=7))
    assert plan.scales[0].index.tolist() == [[6, 0], [6, 2], [5, 3], [1, 4]]
    plan = plan_with(synthetic_slide, "5x,20x", TileSample(max_tiles=18, seed=7))
    assert plan.scales[0].index.tolist() == [[0, 1], [1, 1]]
    assert plan.scales[1].index[-2:].tolist() == [[6, 6], [7, 6]]
