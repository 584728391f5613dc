"""What a slide needs in memory beside its features: some numbers a tile, however many there are."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.features.extract import BagBuilder
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.units import MicronsPerPixel

DIM = 64
BYTES_PER_TILE = 100


def plan_of(edge_tiles: int) -> TilePlan:
    """A slide of so many tiles at 20x on each edge, all tissue, that nobody has to draw."""
    edge = edge_tiles * 224
    facts = SlideFacts(
        path="/slides/x.svs",
        slide_id="x",
        width=edge,
        height=edge,
        bounds=(0, 0, edge, edge),
        levels=(Level(edge, edge, 1.0),),
        mpp=MicronsPerPixel(0.5),
        mpp_source="metadata",
        mpp_problem=None,
        objective_power=None,
        vendor="none",
        compression=None,
        reader="openslide",
        reader_reason="test",
    )
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"), tissue=TissueRecipe(method="none"))
    return make_plan(SimpleNamespace(facts=facts), recipe)


def encode_all(plan: TilePlan, lost: int = 0) -> BagBuilder:
    """As the workers do it, without pixels; the first ``lost`` tiles cannot be decoded."""
    builder = BagBuilder(plan, DIM)
    for batch in plan.batches():
        features = np.full((len(batch), DIM), 1.0, np.float32)
        features += batch.plan_row[:, None]
        ok = np.arange(len(batch)) + builder.tiles_done >= lost
        builder.add(EncodedBatch(batch, features, ok, 0.0, 0.0))
    return builder


@pytest.mark.parametrize("lost", [0, 100])
@pytest.mark.parametrize("edge_tiles", [64, 160])
def test_the_peak_grows_by_the_features_and_little_else(edge_tiles: int, lost: int) -> None:
    encode_all(plan_of(8))  # whatever is allocated once
    plan = plan_of(edge_tiles)
    tracemalloc.start()
    try:
        bag = encode_all(plan, lost).finish()
        bag.validate()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tiles = plan.total_tiles()
    assert sum(bag.counts().values()) == tiles - lost
    fixed = 3_000_000  # parts of arrays that are looked at in turn
    assert peak - tiles * DIM * 4 < fixed + BYTES_PER_TILE * tiles
    if not lost:
        rows = np.arange(edge_tiles**2, dtype=np.float32)
        assert (bag.features["20x"] == 1.0 + rows[:, None]).all()


def test_rows_that_are_lost_leave_the_others_in_order() -> None:
    plan = plan_of(80)
    builder, ok = BagBuilder(plan, 1), np.random.default_rng(0).random(6400) > 0.01
    for batch in plan.batches():
        finest = batch.tile_scale == 2
        good = ~finest | ok[np.where(finest, batch.plan_row, 0)]
        features = batch.plan_row[:, None].astype(np.float32)
        builder.add(EncodedBatch(batch, features, good, 0.0, 0.0))
    found = builder.finish().features["20x"][:, 0]
    assert found.tolist() == np.flatnonzero(ok).tolist()
