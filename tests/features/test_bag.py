"""The bag: scales are dropped without losing who lies inside whom, nonsense is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmamil_sdk.errors import FeatureFileInvalid, ScaleMismatch
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.tiling.recipe import parse_scales


def small_bag() -> Bag:
    """2, 5 and 9 tiles; one 10x tile and one 20x tile have lost their parents."""
    rng = np.random.default_rng(0)
    counts = {"5x": 2, "10x": 5, "20x": 9}
    parent = {
        "5x": np.full(2, -1),
        "10x": np.array([0, 0, 1, -1, 1]),
        "20x": np.array([0, 1, 2, 3, 4, -1, 0, 3, 2]),
    }
    return Bag(
        slide_id="s",
        scales=parse_scales("5x,10x,20x"),
        features={s: rng.normal(size=(n, 4)).astype(np.float32) for s, n in counts.items()},
        coords={s: rng.integers(0, 9999, (n, 2)) for s, n in counts.items()},
        parent=parent,
        tissue={s: np.ones(n, np.float32) for s, n in counts.items()},
    )


def test_a_consistent_bag_is_valid():
    bag = small_bag()
    bag.validate()
    assert bag.dim == 4
    assert bag.counts() == {"5x": 2, "10x": 5, "20x": 9}


def test_dropping_the_middle_scale_links_grandparents():
    bag = small_bag().select(("5x", "20x"))
    bag.validate()
    assert [s.name for s in bag.scales] == ["5x", "20x"]
    assert bag.parent["20x"].tolist() == [0, 0, 1, -1, 1, -1, 0, -1, 1]
    arrays = bag.index_arrays()
    assert arrays["children_5x"].shape == (2, 16)
    assert arrays["children_5x"][0, :4].tolist() == [0, 1, 6, -1]


def test_dropping_the_coarsest_scale_makes_orphans():
    bag = small_bag().select(("10x", "20x"))
    bag.validate()
    assert (bag.parent["10x"] == -1).all()
    assert bag.parent["20x"].tolist() == small_bag().parent["20x"].tolist()


def test_select_keeps_the_order_of_the_scales_and_the_original():
    bag = small_bag()
    picked = bag.select(("20x", "5x"))
    assert [s.name for s in picked.scales] == ["5x", "20x"]
    assert picked.features["20x"] is bag.features["20x"]
    bag.validate()
    alone = bag.select(("20x",))
    assert (alone.parent["20x"] == -1).all()
    assert alone.index_arrays() == {}


def test_select_of_a_scale_that_is_not_there():
    with pytest.raises(ScaleMismatch, match="40x"):
        small_bag().select(("20x", "40x"))


@pytest.mark.parametrize(
    ("part", "scale", "value"),
    [
        ("features", "10x", np.zeros((0, 4), np.float32)),
        ("features", "10x", np.zeros((5, 3), np.float32)),
        ("features", "10x", np.zeros(5, np.float32)),
        ("features", "10x", np.full((5, 4), np.nan, np.float32)),
        ("features", "20x", np.full((9, 4), np.inf, np.float32)),
        ("coords", "10x", np.zeros((4, 2), np.int64)),
        ("coords", "10x", np.zeros((5, 3), np.int64)),
        ("coords", "10x", np.full((5, 2), np.nan)),
        ("tissue", "5x", np.zeros(3, np.float32)),
        ("parent", "20x", np.zeros(8, np.int64)),
        ("parent", "20x", np.full(9, 5)),
        ("parent", "20x", np.full(9, -2)),
        ("parent", "20x", np.zeros(9)),
        ("parent", "5x", np.array([0, -1])),
    ],
)
def test_nonsense_is_refused(part, scale, value):
    bag = small_bag()
    broken = replace(bag, **{part: {**getattr(bag, part), scale: value}})
    with pytest.raises(FeatureFileInvalid, match="Slide s"):
        broken.validate()


def without_tiles(*names: str) -> Bag:
    bag = small_bag()
    parts = {
        part: {n: v[:0] if n in names else v for n, v in getattr(bag, part).items()}
        for part in ("features", "coords", "parent", "tissue")
    }
    return replace(bag, **parts)


def test_a_slide_without_tissue_has_no_tile_at_any_scale():
    empty = without_tiles("5x", "10x", "20x")
    empty.validate()
    assert empty.is_empty
    assert empty.dim == 4
    assert not small_bag().is_empty
    with pytest.raises(FeatureFileInvalid, match="scale 20x"):
        without_tiles("20x").validate()
    with pytest.raises(FeatureFileInvalid, match="scale 5x"):
        without_tiles("5x").validate()
