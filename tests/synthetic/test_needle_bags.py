from __future__ import annotations

import numpy as np

from cmamil_sdk.synthetic.needle_bags import NeedleSettings, needle_bags


def patterns() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]


def test_bags_are_unit_noise_plus_needles_and_hard_negatives() -> None:
    """Amplitude apart, two calls draw the same noise, so their difference is the patterns."""
    weak, strong = (
        needle_bags(40, seed=1, settings=NeedleSettings(tiles=50, amplitude=amplitude))
        for amplitude in (0.0, 3.0)
    )
    decoys = set()
    for position, (noise, bag) in enumerate(zip(weak, strong, strict=True)):
        assert bag.label == position % 2
        assert bag.features.shape == (50, 16) and bag.features.dtype == np.float32
        added = (bag.features - noise.features) @ patterns().T
        needles = 4 * bag.label
        expected = np.zeros((50, 16))
        expected[:needles, 0] = 3.0
        hard = added[needles : needles + 4].argmax(axis=1)
        expected[np.arange(needles, needles + 4), hard] = 3.0
        np.testing.assert_allclose(added, expected, atol=1e-5)
        decoys |= set(hard.tolist())
    assert decoys == {1, 2, 3}
    everything = np.concatenate([bag.features for bag in weak])
    assert abs(everything.mean()) < 0.02
    assert abs(everything.std() - 1.0) < 0.02


def test_hard_negatives_have_the_same_law_under_both_labels() -> None:
    bags = needle_bags(2000, seed=2, settings=NeedleSettings(tiles=12, amplitude=100.0))
    strongest = [
        np.argmax(bag.features @ patterns().T, axis=1)[4 * bag.label :][:4] for bag in bags
    ]
    counts = np.array([np.bincount(rows, minlength=4)[1:4] for rows in strongest])
    by_label = [counts[np.array([b.label for b in bags]) == label].mean(axis=0) for label in (0, 1)]
    np.testing.assert_allclose(by_label[0], by_label[1], atol=0.15)
    np.testing.assert_allclose(by_label[0], 4 / 3, atol=0.1)


def test_bags_are_seeded() -> None:
    first, again, other = (needle_bags(3, seed=s) for s in (5, 5, 6))
    assert all(np.array_equal(a.features, b.features) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].features, other[0].features)
    assert first[0].features.shape == (200, 16)
