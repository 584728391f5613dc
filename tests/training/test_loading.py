from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.features.bag import Bag
from cmamil_sdk.tiling.recipe import parse_scales
from cmamil_sdk.training.data import TrainingBag, bag_tensors
from cmamil_sdk.training.loading import EpochLoader, subsample

from .conftest import make_bag

SCALES = parse_scales("5x,10x,20x")


def cohort(*counts: int) -> list[TrainingBag]:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [bag_tensors(make_bag(f"s{i}", c, seed=i), c) for i, c in enumerate(labels)]


def tree(sizes: tuple[int, int, int], seed: int) -> Bag:
    """A random nested bag; features are the rows' numbers, some parents are unknown."""
    rng = np.random.default_rng(seed)
    parent = {"5x": np.full(sizes[0], -1, dtype=np.int64)}
    for above, name, n in ((sizes[0], "10x", sizes[1]), (sizes[1], "20x", sizes[2])):
        slots = np.repeat(np.arange(above), 4)
        drawn = rng.permutation(np.r_[slots, np.full(n, -1)])[:n]
        parent[name] = np.sort(drawn).astype(np.int64)
    rows = {scale.name: n for scale, n in zip(SCALES, sizes, strict=True)}
    return Bag(
        slide_id="s",
        scales=SCALES,
        features={m: np.arange(n, dtype=np.float32)[:, None] for m, n in rows.items()},
        coords={m: np.zeros((n, 2), np.int64) for m, n in rows.items()},
        parent=parent,
        tissue={m: np.ones(n, np.float32) for m, n in rows.items()},
    )


def kept_rows(bag: TrainingBag) -> dict[str, list[int]]:
    return {name: x[:, 0].long().tolist() for name, x in bag.features.items()}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 30)),
    max_tiles=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_a_subsample_is_the_bag_of_the_kept_tiles(
    sizes: tuple[int, int, int], max_tiles: int, seed: int
) -> None:
    """Its index arrays are those made from the parents of the tiles that stay."""
    whole = tree(sizes, seed)
    part = subsample(bag_tensors(whole, 0), max_tiles, torch.Generator().manual_seed(seed))
    kept = kept_rows(part)
    assert len(kept["20x"]) == min(sizes[2], max_tiles)
    parent = {"5x": np.full(len(kept["5x"]), -1, dtype=np.int64)}
    for above, name in (("5x", "10x"), ("10x", "20x")):
        old = [int(whole.parent[name][row]) for row in kept[name]]
        assert {row for row in old if row >= 0} <= set(kept[above])
        parent[name] = np.array([kept[above].index(r) if r >= 0 else -1 for r in old], np.int64)
        with_children = set(whole.parent[name].tolist())
        childless = {row for row in kept[above] if row in with_children} - set(old)
        assert not childless
    again = Bag("s", SCALES, {n: part.features[n].numpy() for n in kept}, {}, parent, {})
    expected = again.index_arrays()
    assert set(part.index) == set(expected)
    for name, rows in expected.items():
        assert part.index[name].tolist() == rows.tolist(), name


def test_tiles_are_drawn_anew_each_epoch_and_evenly() -> None:
    bag = bag_tensors(tree((1, 4, 16), 0), 0)
    loader = EpochLoader([bag], torch.Generator().manual_seed(0), max_tiles=4)
    epochs = [tuple(kept_rows(part)["20x"]) for _ in range(400) for part in loader]
    assert len(set(epochs)) > 300
    counts = Counter(tile for epoch in epochs for tile in epoch)
    assert set(counts) == set(range(16))
    assert all(70 <= count <= 130 for count in counts.values())  # 100 expected, sd 8.7


def test_a_bag_on_one_scale_and_a_small_one() -> None:
    bag = bag_tensors(tree((2, 4, 9), 0), 0)
    assert subsample(bag, 9, torch.Generator()) is bag
    single = TrainingBag("s", 0, {"20x": bag.features["20x"]}, {})
    part = subsample(single, 3, torch.Generator().manual_seed(1))
    assert len(part.features["20x"]) == 3 and part.index == {}


def untied(bag: TrainingBag, *, index: bool) -> TrainingBag:
    """The bag without parents: -1 in every index array, or no such arrays at all."""
    absent = {key: torch.full_like(rows, -1) for key, rows in bag.index.items()}
    return TrainingBag(bag.slide, bag.label, bag.features, absent if index else {})


@pytest.mark.parametrize("index", [False, True])
def test_scales_that_are_not_tied_are_drawn_by_themselves(index: bool) -> None:
    bag = untied(bag_tensors(tree((9, 4, 30), 0), 0), index=index)
    part = subsample(bag, 5, torch.Generator().manual_seed(2))
    kept = kept_rows(part)
    assert {name: len(rows) for name, rows in kept.items()} == {"5x": 5, "10x": 4, "20x": 5}
    assert all(rows == sorted(set(rows)) for rows in kept.values())
    assert kept == kept_rows(subsample(bag, 5, torch.Generator().manual_seed(2)))
    assert kept != kept_rows(subsample(bag, 5, torch.Generator().manual_seed(3)))
    assert set(part.index) == set(bag.index)
    for key, rows in part.index.items():
        assert len(rows) == len(kept[key.split("_")[1]]) and (rows == -1).all()
    assert len(subsample(bag, 8, torch.Generator()).features["5x"]) == 8
    assert subsample(bag, 30, torch.Generator()) is bag


@pytest.mark.parametrize("step_size", [1, 4, 5, 7, 8, 20, 64])
def test_balanced_steps_hold_every_class_as_often(step_size: int) -> None:
    options = {"sampling": "balanced", "step_size": step_size}
    loader = EpochLoader(cohort(2, 6, 12), torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    epochs = [list(loader) for _ in range(60)]
    for epoch in epochs:
        assert len(epoch) == len(loader) == 20
        for first in range(0, 20, step_size):
            step = epoch[first : first + step_size]
            counts = Counter(bag.label for bag in step)
            assert max(counts.values()) - min(counts[label] for label in range(3)) <= 1
        # 6 or 7 draws of a class: each of two slides 3 or 4 times, each of twelve at most once
        per_slide = Counter(bag.slide for bag in epoch)
        assert all(per_slide[f"s{i}"] in (3, 4) for i in (0, 1))
        assert all(per_slide[f"s{i}"] in (1, 2) for i in range(2, 8))
        assert all(per_slide[f"s{i}"] <= 1 for i in range(8, 20))
    assert len({tuple(bag.slide for bag in epoch) for epoch in epochs}) == 60
    drawn = Counter(bag.label for epoch in epochs for bag in epoch)
    assert all(350 <= drawn[label] <= 450 for label in range(3))  # 400 expected
    seen = Counter(bag.slide for epoch in epochs for bag in epoch)
    assert all(20 <= seen[f"s{i}"] <= 47 for i in range(8, 20))  # 33 expected, sd 4


def test_a_class_without_bags_takes_no_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    bags = [bag for bag in cohort(3, 3, 3) if bag.label != 1]
    drawn = list(EpochLoader(bags, generator, sampling="balanced", step_size=4))
    assert Counter(bag.label for bag in drawn) == {0: 3, 2: 3}


def test_shuffled_epochs_hold_each_bag_once_and_repeat_by_seed() -> None:
    bags = cohort(3, 3, 3)

    def orders(seed: int) -> list[list[str]]:
        loader = EpochLoader(bags, torch.Generator().manual_seed(seed))
        return [[bag.slide for bag in loader] for _ in range(3)]

    first = orders(0)
    assert first == orders(0) != orders(1)
    assert first[0] != first[1]
    assert all(sorted(order) == sorted(bag.slide for bag in bags) for order in first)


def test_without_a_generator_bags_come_in_order_and_whole() -> None:
    bags = cohort(2, 2)
    assert list(EpochLoader(bags, max_tiles=1)) == bags


@pytest.mark.parametrize("sampling", ["shuffle", "balanced"])
def test_the_generator_is_all_that_an_epoch_depends_on(sampling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    options = {"sampling": sampling, "max_tiles": 3}
    loader = EpochLoader(cohort(3, 4), generator, **options)  # type: ignore[arg-type]
    list(loader)
    state = generator.get_state()
    second = [(bag.slide, bag.features["20x"].tolist()) for bag in loader]
    fresh = torch.Generator()
    fresh.set_state(state)
    again = EpochLoader(cohort(3, 4), fresh, **options)  # type: ignore[arg-type]
    assert [(bag.slide, bag.features["20x"].tolist()) for bag in again] == second
