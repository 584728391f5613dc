from __future__ import annotations

import numpy as np
import pytest

from cmamil_sdk.synthetic.bags import SCALES, ConjunctionSettings, SyntheticBag, conjunction_bags
from cmamil_sdk.tiling.nesting import nesting_arrays

QUIET = ConjunctionSettings(noise=0.0)


def hosts(bag: SyntheticBag) -> tuple[np.ndarray, list[int]]:
    """Kind of each 5x tile (True: A) and abnormal 20x tiles in each, from noise-free features."""
    abnormal = bag.features["20x"]
    reference = _patterns()
    is_abnormal = np.isclose(abnormal, reference["abnormal"], atol=1e-5).all(axis=1)
    top = bag.parent["10x"][bag.parent["20x"]]
    counts = np.bincount(top[is_abnormal], minlength=6)
    is_a = np.isclose(bag.features["5x"], reference["A"], atol=1e-5).all(axis=1)
    return is_a, counts.tolist()


def _patterns_by_scale() -> list[np.ndarray]:
    """By the recipe: Q of normal matrices, drawn in order 5x, 10x, 20x."""
    rng = np.random.default_rng(0)
    return [np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(3)]


def _patterns() -> dict[str, np.ndarray]:
    """A, B and the abnormal pattern."""
    q = _patterns_by_scale()
    return {"A": 3 * q[0][0], "B": 3 * q[0][1], "abnormal": 3 * q[2][0]}


def test_the_label_is_the_kind_of_the_two_hosts_and_nothing_else() -> None:
    for bag in conjunction_bags(200, seed=1, settings=QUIET):
        is_a, counts = hosts(bag)
        host_rows = [row for row, count in enumerate(counts) if count]
        assert len(host_rows) == 2
        assert sum(is_a[host_rows]) == bag.label
        assert 8 <= sum(counts) <= 16
        assert abs(counts[host_rows[0]] - counts[host_rows[1]]) <= 1
        assert 2 <= is_a.sum() <= 3


def test_each_scale_alone_has_the_same_law_under_both_labels() -> None:
    bags = conjunction_bags(1500, seed=2, settings=QUIET)
    for statistic in (
        lambda bag: hosts(bag)[0].sum(),
        lambda bag: sum(hosts(bag)[1]),
        lambda bag: max(hosts(bag)[1]),
    ):
        by_label = [[statistic(bag) for bag in bags if bag.label == label] for label in (0, 1)]
        spread = np.std(by_label[0]) * np.sqrt(2 / 750)
        assert abs(np.mean(by_label[0]) - np.mean(by_label[1])) < 4 * spread


def test_the_odd_cell_lies_in_either_kind_of_host() -> None:
    odd_in_a = []
    for bag in conjunction_bags(600, seed=3, settings=QUIET):
        is_a, counts = hosts(bag)
        if bag.label == 1 and sum(counts) % 2:
            odd_in_a.append(bool(is_a[int(np.argmax(counts))]))
    assert 0.35 < np.mean(odd_in_a) < 0.65


def test_tiles_nest() -> None:
    bag = conjunction_bags(1, seed=4)[0]
    assert {name: x.shape for name, x in bag.features.items()} == {
        "5x": (6, 16),
        "10x": (24, 16),
        "20x": (96, 16),
    }
    for coarse, fine, size in (("5x", "10x", 896), ("10x", "20x", 448)):
        offset = bag.coords[fine] - bag.coords[coarse][bag.parent[fine]]
        assert set(np.unique(offset)) == {0, size // 2}
    for name in bag.coords:
        assert len(np.unique(bag.coords[name], axis=0)) == len(bag.coords[name])
    arrays = nesting_arrays(SCALES, bag.parent)
    assert (arrays["children_5x"] >= 0).all() and arrays["children_10x"].shape == (24, 4)


def test_bags_are_seeded_and_of_unit_noise() -> None:
    first, second = conjunction_bags(4, seed=5), conjunction_bags(4, seed=5)
    assert all(
        np.array_equal(a.features["20x"], b.features["20x"])
        for a, b in zip(first, second, strict=True)
    )
    assert not np.array_equal(
        first[0].features["20x"], conjunction_bags(4, seed=6)[0].features["20x"]
    )
    assert [bag.label for bag in first] == [0, 1, 0, 1]
    noisy = conjunction_bags(40, seed=5)
    plain = np.concatenate([bag.features["20x"] for bag in noisy])
    quiet_tiles = np.linalg.norm(plain, axis=1) < 3.0
    assert plain[quiet_tiles].std() == pytest.approx(0.5, abs=0.01)


def test_by_the_rule_20in10_the_hosts_are_10x_tiles() -> None:
    settings = ConjunctionSettings(noise=0.0, rule="20in10", abnormal_min=4, abnormal_max=8)
    at_5x, at_10x, at_20x = _patterns_by_scale()
    n_a, random_kinds = set(), []
    for bag in conjunction_bags(200, seed=8, settings=settings):
        is_a = np.isclose(bag.features["10x"], 3 * at_10x[0], atol=1e-5).all(axis=1)
        is_b = np.isclose(bag.features["10x"], 3 * at_10x[1], atol=1e-5).all(axis=1)
        assert (is_a ^ is_b).all()
        n_a.add(int(is_a.sum()))
        random_kinds += np.isclose(bag.features["5x"], 3 * at_5x[0], atol=1e-5).all(axis=1).tolist()
        abnormal = np.isclose(bag.features["20x"], 3 * at_20x[0], atol=1e-5).all(axis=1)
        counts = np.bincount(bag.parent["20x"][abnormal], minlength=24)
        hosts_10x = np.flatnonzero(counts)
        assert len(hosts_10x) == 2 and 4 <= counts.sum() <= 8
        assert abs(counts[hosts_10x[0]] - counts[hosts_10x[1]]) <= 1
        assert is_a[hosts_10x].sum() == bag.label
    assert n_a == {10, 11, 12, 13, 14}
    assert 0.45 < np.mean(random_kinds) < 0.55


def test_style_is_shared_by_a_region() -> None:
    settings = ConjunctionSettings(noise=0.0, amplitude=0.0, style=2.0)
    bag = conjunction_bags(1, seed=7, settings=settings)[0]
    top = bag.parent["10x"][bag.parent["20x"]]
    np.testing.assert_allclose(bag.features["20x"], bag.features["5x"][top], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(bag.features["5x"], axis=1), 2.0, atol=1e-5)
