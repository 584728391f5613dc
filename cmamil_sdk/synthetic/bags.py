"""Bags of feature vectors whose label only the relation between scales decides.

Benchmark A, "multi-scale conjunction": each bag has 5x tiles of two kinds of context, A and B, and
abnormal 20x tiles inside exactly two of them. The bag is positive if one host is A and one is B,
negative if both are B. How many tiles of each kind there are has the same law under both labels, so
a model that sees the scales as unordered sets cannot know better than chance. By the rule "20in10"
the two kinds of context live on 10x tiles, which are the hosts, and 5x tiles mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        abnormal_max: most abnormal 20x tiles; half of them must fit into one host, of 16 20x tiles
            by rule "20in5", of 4 by "20in10".
        mimics: 20x tiles with a harmless pattern.
        grid: edge of the lattice that 5x tiles are placed on.
        style_dim: number of directions a region's own style may take.
        style: length of a region's own style, added to a 5x tile and all inside it.
        rule: whether contexts and hosts are 5x tiles ("20in5") or 10x tiles ("20in10").
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
    rule: Literal["20in5", "20in10"] = "20in5"
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
    in_5x = settings.rule == "20in5"
    is_a = _contexts(rng, n5, 1, 0) if in_5x else _contexts(rng, n10, 2, 2)
    twenty = np.zeros((n20, settings.dim))
    abnormal = _abnormal_tiles(label, rng, settings, is_a)
    twenty[abnormal] = prototypes.at_20x[0]
    others = np.setdiff1d(np.arange(n20), abnormal)
    twenty[rng.choice(others, settings.mimics, replace=False)] = prototypes.at_20x[1]
    meaningless = rng.integers(0, 2, n10 if in_5x else n5)
    kind = np.where(is_a, 0, 1)
    patterns = {
        "5x": prototypes.at_5x[kind if in_5x else meaningless],
        "10x": prototypes.at_10x[meaningless if in_5x else kind],
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


def _contexts(rng: np.random.Generator, n: int, fewer: int, more: int) -> npt.NDArray[np.bool_]:
    """Which tiles are of kind A: half of them, up to ``fewer`` less or ``more`` more."""
    n_a = int(rng.integers(max(1, n // 2 - fewer), n // 2 + more + 1))
    is_a = np.zeros(n, dtype=np.bool_)
    is_a[rng.choice(n, n_a, replace=False)] = True
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
    inside = _CHILDREN_20X if settings.rule == "20in5" else _CHILDREN_10X
    total = int(rng.integers(settings.abnormal_min, settings.abnormal_max + 1))
    rows = [
        host * inside + rng.choice(inside, count, replace=False)
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
