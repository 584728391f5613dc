"""The nested grid as index arrays: which tile lies inside which.

These arrays are what nested attention gathers over, in eager models and in exported graphs alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import FeatureFileInvalid
from cmamil_sdk.tiling.recipe import Scale
from cmamil_sdk.wording import counted

Int64 = npt.NDArray[np.int64]


def nesting_arrays(scales: Sequence[Scale], parent: Mapping[str, Int64]) -> dict[str, Int64]:
    """Index arrays of the nested grid for scales ordered coarse to fine.

    Args:
        scales: the bag's scales, coarse to fine.
        parent: per scale ``[N]`` int64, the row of the enclosing tile at the next coarser scale,
            -1 for none. The coarsest scale's values are not read.

    Returns:
        ``children_<scale>`` ``[N, r * r]`` int64 for every scale but the finest (rows of the next
        finer scale in ascending order, -1 for none; r is the mpp ratio) and ``ancestor_<finest>``
        ``[N, 1]`` int64 (row of the coarsest scale, -1 for none). Empty for a single scale.

    Raises:
        FeatureFileInvalid: a parent is out of range or has more children than fit.
    """
    arrays: dict[str, Int64] = {}
    if len(scales) < 2:
        return arrays
    for coarse, fine in itertools.pairwise(scales):
        ratio = round(coarse.mpp / fine.mpp)
        arrays[f"children_{coarse.name}"] = _children(
            parent[fine.name], len(parent[coarse.name]), ratio * ratio, fine.name
        )
    arrays[f"ancestor_{scales[-1].name}"] = _ancestor(scales, parent)[:, None]
    return arrays


def _children(parent: Int64, n_parents: int, width: int, name: str) -> Int64:
    rows = np.flatnonzero(parent >= 0)
    owners = parent[rows]
    if owners.size and int(owners.max()) >= n_parents:
        raise FeatureFileInvalid(
            f"Scale {name}: parent row {int(owners.max())} does not exist among "
            f"{counted(n_parents, 'tile')}; extract the features again."
        )
    order = np.argsort(owners, kind="stable")
    rows, owners = rows[order], owners[order]
    counts = np.bincount(owners, minlength=n_parents)
    if counts.size and int(counts.max(initial=0)) > width:
        raise FeatureFileInvalid(
            f"Scale {name}: one tile has {int(counts.max())} children where {width} fit; "
            "extract the features again."
        )
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]) if n_parents else np.zeros(0, np.int64)
    slot = np.arange(rows.size) - first[owners] if rows.size else np.zeros(0, np.int64)
    children = np.full((n_parents, width), -1, dtype=np.int64)
    children[owners, slot] = rows
    return children


def _ancestor(scales: Sequence[Scale], parent: Mapping[str, Int64]) -> Int64:
    """Row of the coarsest tile above each finest tile, -1 where the chain is broken."""
    above = parent[scales[-1].name].astype(np.int64, copy=True)
    for scale in reversed(scales[1:-1]):
        chain = np.append(parent[scale.name], -1)  # index -1 keeps a broken chain broken
        above = chain[above]
    return above


__all__ = ["nesting_arrays"]
