"""Bags of feature vectors whose label only the relation between scales decides.

Benchmark A, "multi-scale conjunction": each bag has 5x tiles of two kinds of context, A and B, and
abnormal 20x tiles inside exactly two of them. The bag is positive if one host is A and one is B,
negative if both are B. How many tiles of each kind there are has the same law under both labels, so
a model that sees the scales as unordered sets cannot know better than chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.tiling.recipe import Scale

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SCALES = (
    Scale(name="5x", mpp=2.0),
    Scale(name="10x", mpp=1.0),
    Scale(name="20x", mpp=0.5),
)
_TILE_PX = 224
_CHILDREN_10X = 4
_CHILDREN_20X = 16


@dataclass(frozen=True)
class ConjunctionSettings:
    """Parameters of the benchmark; the defaults are its setting E.

    Attributes:
        n5: 5x tiles of a bag (with 4 times as many at 10x and 16 times as many at 20x).
        dim: width of a feature vector.
        amplitude: length of a pattern.
        noise: standard deviation of each feature.
        abnormal_min: fewest abnormal 20x tiles.
        abnormal_max: most abnormal 20x tiles; half of them must fit into one 5x tile.
        mimics: 20x tiles with a harmless pattern.
        grid: edge of the lattice that 5x tiles are placed on.
        style_dim: number of directions a region's own style may take.
        style: length of a region's own style, added to a 5x tile and all inside it.
        prototype_seed: of the patterns, shared by all bags that are to be compared.
    """

    n5: int = 6
    dim: int = 16
    amplitude: float = 3.0
    noise: float = 0.5
    abnormal_min: int = 8
    abnormal_max: int = 16
    mimics: int = 4
    grid: int = 16
    style_dim: int = 8
    style: float = 0.0
    prototype_seed: int = 0


@dataclass(frozen=True)
class SyntheticBag:
    """A bag with a known answer.

    Attributes:
        label: 0 or 1.
        features: per scale ``[n, dim]`` float32.
        coords: per scale ``[n, 2]`` int64 ``(x, y)``, top left corner in 20x pixels.
        parent: per scale ``[n]`` int64, row of the enclosing tile at the next coarser scale.
    """

    label: int
    features: dict[str, Float32]
    coords: dict[str, Int64]
    parent: dict[str, Int64]


@dataclass(frozen=True)
class _Prototypes:
    """Orthonormal patterns ``[dim, dim]`` per scale and style directions ``[style_dim, dim]``."""

    at_5x: Float64
    at_10x: Float64
    at_20x: Float64
    style: Float64

    @classmethod
    def draw(cls, settings: ConjunctionSettings) -> _Prototypes:
        rng = np.random.default_rng(settings.prototype_seed)
        square = (settings.dim, settings.dim)
        five, ten, twenty = (np.linalg.qr(rng.standard_normal(square))[0] for _ in range(3))
        style = np.linalg.qr(rng.standard_normal((settings.dim, settings.style_dim)))[0]
        return cls(five, ten, twenty, style.T)


def conjunction_bags(
    n: int, seed: int, settings: ConjunctionSettings | None = None
) -> list[SyntheticBag]:
    """Draw ``n`` bags with labels 0, 1, 0, 1, ...; equal arguments give equal bags."""
    settings = settings or ConjunctionSettings()
    prototypes = _Prototypes.draw(settings)
    rng = np.random.default_rng(seed)
    return [_bag(position % 2, rng, settings, prototypes) for position in range(n)]


def _bag(
    label: int,
    rng: np.random.Generator,
    settings: ConjunctionSettings,
    prototypes: _Prototypes,
) -> SyntheticBag:
    n5 = settings.n5
    n10, n20 = _CHILDREN_10X * n5, _CHILDREN_20X * n5
    parent_10x = np.repeat(np.arange(n5), _CHILDREN_10X)
    parent_20x = np.repeat(np.arange(n10), _CHILDREN_10X)
    is_a = _contexts(rng, n5)
    twenty = np.zeros((n20, settings.dim))
    abnormal = _abnormal_tiles(label, rng, settings, is_a)
    twenty[abnormal] = prototypes.at_20x[0]
    others = np.setdiff1d(np.arange(n20), abnormal)
    twenty[rng.choice(others, settings.mimics, replace=False)] = prototypes.at_20x[1]
    patterns = {
        "5x": np.where(is_a[:, None], prototypes.at_5x[0], prototypes.at_5x[1]),
        "10x": prototypes.at_10x[rng.integers(0, 2, n10)],
        "20x": twenty,
    }
    region = {"5x": np.arange(n5), "10x": parent_10x, "20x": parent_10x[parent_20x]}
    styles = rng.standard_normal((n5, settings.style_dim))
    styles = styles / np.linalg.norm(styles, axis=1, keepdims=True) @ prototypes.style
    features = {
        name: (
            settings.amplitude * pattern
            + settings.noise * rng.standard_normal(pattern.shape)
            + settings.style * styles[region[name]]
        ).astype(np.float32)
        for name, pattern in patterns.items()
    }
    return SyntheticBag(
        label=label,
        features=features,
        coords=_coords(rng, settings),
        parent={"5x": np.full(n5, -1), "10x": parent_10x, "20x": parent_20x},
    )


def _contexts(rng: np.random.Generator, n5: int) -> npt.NDArray[np.bool_]:
    """Which 5x tiles are of kind A: nearly half of them."""
    n_a = int(rng.integers(max(1, n5 // 2 - 1), n5 // 2 + 1))
    is_a = np.zeros(n5, dtype=np.bool_)
    is_a[rng.choice(n5, n_a, replace=False)] = True
    return is_a


def _abnormal_tiles(
    label: int,
    rng: np.random.Generator,
    settings: ConjunctionSettings,
    is_a: npt.NDArray[np.bool_],
) -> Int64:
    """Rows of the abnormal 20x tiles: half in each of two hosts, one of them A if positive."""
    kind_a, kind_b = np.flatnonzero(is_a), np.flatnonzero(~is_a)
    if label == 1:
        hosts = np.array([rng.choice(kind_a), rng.choice(kind_b)])
        rng.shuffle(hosts)  # else the odd cell would always lie in B
    else:
        hosts = rng.choice(kind_b, 2, replace=False)
    total = int(rng.integers(settings.abnormal_min, settings.abnormal_max + 1))
    rows = [
        host * _CHILDREN_20X + rng.choice(_CHILDREN_20X, count, replace=False)
        for host, count in zip(hosts, (total // 2, total - total // 2), strict=True)
    ]
    return np.concatenate(rows)


def _coords(rng: np.random.Generator, settings: ConjunctionSettings) -> dict[str, Int64]:
    cells = rng.choice(settings.grid**2, settings.n5, replace=False)
    five = np.stack([cells % settings.grid, cells // settings.grid], axis=1)
    quarter = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    ten = (2 * five[:, None] + quarter).reshape(-1, 2)
    twenty = (2 * ten[:, None] + quarter).reshape(-1, 2)
    return {
        "5x": five * (4 * _TILE_PX),
        "10x": ten * (2 * _TILE_PX),
        "20x": twenty * _TILE_PX,
    }


__all__ = ["SCALES", "ConjunctionSettings", "SyntheticBag", "conjunction_bags"]
