"""Seeded bags to try an aggregator on; no torch is needed to make one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.tiling.nesting import nesting_arrays
from cmamil_sdk.tiling.recipe import Scale

Arrays = dict[str, npt.NDArray[Any]]


def probe_bag(scales: Sequence[Scale], dim: int, *, finest_tiles: int, seed: int) -> Arrays:
    """Seeded inputs of a bag whose tiles nest, with orphans among them.

    Returns ``features_<scale>`` ``[n, dim]`` and all index arrays of the nested grid.
    """
    rng = np.random.default_rng(seed)
    counts = [finest_tiles]
    for coarse, fine in reversed(list(itertools.pairwise(scales))):
        per_parent = round(coarse.mpp / fine.mpp) ** 2
        counts.append(-(-counts[-1] // per_parent) + 1)
    counts.reverse()
    parent = {scales[0].name: np.full(counts[0], -1, dtype=np.int64)}
    for position, fine in enumerate(scales[1:], start=1):
        per_parent = round(scales[position - 1].mpp / fine.mpp) ** 2
        rows = np.arange(counts[position], dtype=np.int64) // per_parent
        rows[rng.random(counts[position]) < 0.05] = -1
        parent[fine.name] = rows
    bag: Arrays = {
        f"features_{scale.name}": 0.6 * rng.standard_normal((n, dim), dtype=np.float32) + 0.3
        for scale, n in zip(scales, counts, strict=True)
    }
    bag.update(nesting_arrays(scales, parent))
    return bag


__all__ = ["Arrays", "probe_bag"]
