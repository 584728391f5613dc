from __future__ import annotations

import numpy as np

from cmamil_sdk.synthetic.hierarchy_bags import (
    PARENTS,
    RARE,
    TRAIN_COUNTS,
    HierarchySettings,
    hierarchy_bags,
)

QUIET = HierarchySettings(noise=0.0)


def patterns() -> tuple[np.ndarray, np.ndarray]:
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
    return q[:3], q[3:10]


def test_lesions_have_both_patterns_and_distractors_only_a_fine_one() -> None:
    coarse, fine = patterns()
    seen = set()
    for bag in hierarchy_bags([20] * 7, seed=1, settings=QUIET):
        by_coarse, by_fine = bag.features @ coarse.T, bag.features @ fine.T
        lesions = by_coarse.max(axis=1) > 2
        assert 4 <= lesions.sum() <= 8
        assert (by_coarse[lesions].argmax(axis=1) == PARENTS[bag.label]).all()
        np.testing.assert_allclose(by_coarse[lesions, PARENTS[bag.label]], 2.5, atol=1e-5)
        np.testing.assert_allclose(by_fine[lesions, bag.label], 2.0, atol=1e-5)
        distractors = ~lesions & (by_fine.max(axis=1) > 2.9)
        assert distractors.sum() == 6
        seen |= set(by_fine[distractors].argmax(axis=1).tolist())
        empty = ~lesions & ~distractors
        assert empty.sum() == 40 - 6 - lesions.sum()
        assert not bag.features[empty].any()
    assert seen == set(range(7))


def test_counts_are_as_asked_shuffled_and_repeatable() -> None:
    bags = hierarchy_bags(TRAIN_COUNTS, seed=1000)
    labels = [bag.label for bag in bags]
    assert tuple(np.bincount(labels)) == TRAIN_COUNTS
    assert labels != sorted(labels)
    assert {label for label, count in enumerate(TRAIN_COUNTS) if count == 8} == set(RARE)
    again, other = (hierarchy_bags(TRAIN_COUNTS, seed=s) for s in (1000, 1001))
    assert all(np.array_equal(a.features, b.features) for a, b in zip(bags, again, strict=True))
    assert not np.array_equal(bags[0].features, other[0].features)
    assert bags[0].features.dtype == np.float32
