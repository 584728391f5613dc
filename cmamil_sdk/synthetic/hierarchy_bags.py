"""Bags of feature vectors with two levels of labels, some of the fine ones rare.

Benchmark B, "hierarchy with rare fine classes": a bag's lesion tiles carry the pattern of its
coarse class and that of its fine class together. Distractor tiles carry some fine pattern alone, so
fine evidence counts only where coarse evidence is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

PARENTS = (0, 0, 0, 1, 1, 2, 2)
"""Coarse class of each fine class."""
TRAIN_COUNTS = (60, 60, 8, 60, 8, 60, 8)
"""Training bags of each fine class; the last of each coarse class is rare."""
RARE = (2, 4, 6)


@dataclass(frozen=True)
class HierarchySettings:
    """Parameters of the benchmark.

    Attributes:
        dim: width of a feature vector, at least 10.
        tiles: tiles of a bag.
        noise: standard deviation of each feature.
        lesions_min: fewest lesion tiles.
        lesions_max: most lesion tiles.
        distractors: tiles with a fine pattern and no coarse one.
        coarse_amplitude: length of the coarse pattern in a lesion tile.
        fine_amplitude: length of the fine pattern in a lesion tile.
        distractor_amplitude: length of the pattern in a distractor tile.
        prototype_seed: of the patterns, shared by all bags that are to be compared.
    """

    dim: int = 64
    tiles: int = 40
    noise: float = 1.0
    lesions_min: int = 4
    lesions_max: int = 8
    distractors: int = 6
    coarse_amplitude: float = 2.5
    fine_amplitude: float = 2.0
    distractor_amplitude: float = 3.0
    prototype_seed: int = 0


@dataclass(frozen=True)
class HierarchyBag:
    """A bag with a known answer: fine class and ``[tiles, dim]`` float32; lesions come first."""

    label: int
    features: Float32


def hierarchy_bags(
    counts: Sequence[int], seed: int, settings: HierarchySettings | None = None
) -> list[HierarchyBag]:
    """Draw ``counts[f]`` bags of each fine class f, shuffled; equal arguments give equal bags."""
    settings = settings or HierarchySettings()
    square = (settings.dim, settings.dim)
    prototypes = np.random.default_rng(settings.prototype_seed).standard_normal(square)
    patterns = np.linalg.qr(prototypes)[0]
    n_coarse = max(PARENTS) + 1
    coarse, fine = patterns[:n_coarse], patterns[n_coarse : n_coarse + len(PARENTS)]
    rng = np.random.default_rng(seed)
    bags = []
    for label, count in enumerate(counts):
        for _ in range(count):
            lesions = int(rng.integers(settings.lesions_min, settings.lesions_max + 1))
            features = settings.noise * rng.standard_normal((settings.tiles, settings.dim))
            features[:lesions] += settings.coarse_amplitude * coarse[PARENTS[label]]
            features[:lesions] += settings.fine_amplitude * fine[label]
            others = rng.integers(0, len(PARENTS), settings.distractors)
            distracted = slice(lesions, lesions + settings.distractors)
            features[distracted] += settings.distractor_amplitude * fine[others]
            bags.append(HierarchyBag(label, features.astype(np.float32)))
    return [bags[i] for i in rng.permutation(len(bags))]


__all__ = [
    "PARENTS",
    "RARE",
    "TRAIN_COUNTS",
    "HierarchyBag",
    "HierarchySettings",
    "hierarchy_bags",
]
