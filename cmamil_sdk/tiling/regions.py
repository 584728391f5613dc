"""Connected regions of a mask: small ones dropped, small holes filled, seeds grown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoolMask = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]


def drop_small(mask: BoolMask, min_cells: float) -> BoolMask:
    """``mask [rows, columns]`` without its regions of fewer than ``min_cells`` cells.

    Cells that touch at an edge or a corner are of one region.
    """
    labels, sizes = label_regions(mask, corners=True)
    large: BoolMask = sizes >= min_cells
    large[0] = False
    return large[labels]


def fill_holes(mask: BoolMask, max_cells: float) -> BoolMask:
    """``mask [rows, columns]`` with its holes of at most ``max_cells`` cells filled.

    A hole is background that the mask encloses; what reaches the border of the array is none.
    """
    labels, sizes = label_regions(~mask, corners=False)
    hole: BoolMask = sizes <= max_cells
    hole[0] = False
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        hole[border] = False
    return mask | hole[labels]


def grow(seeds: BoolMask, ground: BoolMask) -> BoolMask:
    """The regions of ``ground [rows, columns]`` that hold at least one cell of ``seeds``."""
    labels, sizes = label_regions(ground, corners=True)
    reached: BoolMask = np.zeros(len(sizes), dtype=bool)
    reached[labels[seeds]] = True
    reached[0] = False
    return reached[labels]


def label_regions(mask: BoolMask, *, corners: bool) -> tuple[Int64, Int64]:
    """Number the connected regions of ``mask [rows, columns]``.

    Args:
        mask: any.
        corners: whether cells that touch at a corner only are of one region.

    Returns:
        ``labels [rows, columns]``, 0 outside the mask and 1 to n in it, and ``sizes [n + 1]``, cells
        per label, 0 for label 0.
    """
    columns = mask.shape[1]
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]
    region = _join(len(row), *_touching(row * (columns + 2), start, end, columns + 2, corners))
    labels = np.zeros(mask.shape, dtype=np.int64)
    # Runs come in the order in which a mask picks its cells: by row, then by column.
    labels[mask] = np.repeat(region + 1, end - start)
    sizes = np.bincount(region + 1, weights=end - start, minlength=1).astype(np.int64)
    return labels, sizes


def _touching(
    row_key: Int64, start: Int64, end: Int64, stride: int, corners: bool
) -> tuple[Int64, Int64]:
    """Pairs of runs in neighbouring rows that touch, as two arrays of run numbers."""
    reach = 1 if corners else 0
    above = row_key - stride
    first = np.searchsorted(row_key + end, above + start - reach, side="right")
    last = np.searchsorted(row_key + start, above + end + reach, side="left")
    count = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(len(start)), count)
    place = np.arange(len(lower)) - np.repeat(np.cumsum(count) - count, count)
    return lower, np.repeat(first, count) + place


def _join(n: int, one: Int64, other: Int64) -> Int64:
    """Region number of each of ``n`` runs, 0 upwards, where ``one[i]`` and ``other[i]`` touch."""
    root = np.arange(n)
    while True:
        a, b = root[one], root[other]
        apart = a != b
        if not apart.any():
            return np.unique(root, return_inverse=True)[1].astype(np.int64)
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(above := root[root], root):
            root = above


__all__ = ["drop_small", "fill_holes", "grow", "label_regions"]
