"""Bags of feature vectors in which very few tiles carry the label.

Benchmark C, "needle bags": a positive bag has a few tiles with one pattern among many of pure noise;
every bag has hard negatives, tiles with a pattern that means nothing. Pooling that cannot
concentrate on few tiles averages the needles away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_DECOYS = slice(1, 4)
"""Rows of the patterns that hard negatives may carry; row 0 is the needles'."""


@dataclass(frozen=True)
class NeedleSettings:
    """Parameters of the benchmark.

    Attributes:
        tiles: tiles of a bag.
        dim: width of a feature vector, at least 4.
        needles: tiles of a positive bag with the telling pattern.
        hard_negatives: tiles of every bag with one of three other patterns.
        amplitude: length of a pattern.
        prototype_seed: of the patterns, shared by all bags that are to be compared.
    """

    tiles: int = 200
    dim: int = 16
    needles: int = 4
    hard_negatives: int = 4
    amplitude: float = 3.0
    prototype_seed: int = 0


@dataclass(frozen=True)
class NeedleBag:
    """A bag with a known answer: 0 or 1 and ``[tiles, dim]`` float32; needles come first."""

    label: int
    features: Float32


def needle_bags(n: int, seed: int, settings: NeedleSettings | None = None) -> list[NeedleBag]:
    """Draw ``n`` bags with labels 0, 1, 0, 1, ...; equal arguments give equal bags."""
    settings = settings or NeedleSettings()
    square = (settings.dim, settings.dim)
    patterns = np.linalg.qr(np.random.default_rng(settings.prototype_seed).standard_normal(square))[
        0
    ]
    rng = np.random.default_rng(seed)
    return [_bag(position % 2, rng, settings, patterns) for position in range(n)]


def _bag(
    label: int,
    rng: np.random.Generator,
    settings: NeedleSettings,
    patterns: npt.NDArray[np.float64],
) -> NeedleBag:
    features = rng.standard_normal((settings.tiles, settings.dim))
    needles = settings.needles * label
    features[:needles] += settings.amplitude * patterns[0]
    decoys = patterns[_DECOYS]
    drawn = rng.integers(0, len(decoys), settings.hard_negatives)
    features[needles : needles + settings.hard_negatives] += settings.amplitude * decoys[drawn]
    return NeedleBag(label, features.astype(np.float32))


__all__ = ["NeedleBag", "NeedleSettings", "needle_bags"]
