"""Area averaging: the only way this package makes pixels coarser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]

_STRIP_PX = 1_000_000
"""About as many pixels are held as floating point numbers at once."""


def reduce_by(pixels: UInt8, factor: int) -> UInt8:
    """Average blocks of ``factor`` x ``factor`` pixels of ``[H, W, 3]``; both edges divide evenly."""
    if factor == 1:
        return pixels
    return np.asarray(Image.fromarray(pixels).reduce(factor))


def area_average(pixels: UInt8, box: Box, out_width: int, out_height: int) -> UInt8:
    """Mean colour of each cell when ``box`` is cut into ``out_width`` x ``out_height`` equal cells.

    Each source pixel counts by the share of it that lies in the cell, so a shift of the box by a
    fraction of a pixel changes the result in proportion.

    Args:
        pixels: ``[H, W, 3]``.
        box: ``(left, top, right, bottom)`` in pixels of ``pixels``; lies within it.
        out_width: cells along x.
        out_height: cells along y.

    Returns:
        ``[out_height, out_width, 3]``, rounded to nearest; where cells are a whole number of pixels
        wide that is no power of two, at most one grey level off.
    """
    left, top, right, bottom = box
    factor = (right - left) / out_width
    whole = (left, top, factor, (bottom - top) / out_height)
    if all(float(v).is_integer() for v in whole) and whole[2] == whole[3]:
        return reduce_by(pixels[int(top) : int(bottom), int(left) : int(right)], int(factor))
    mean = np.empty((out_height, out_width, 3), dtype=np.uint8)
    rows, columns = cell_shares(top, bottom, out_height), cell_shares(left, right, out_width)
    strip = max(1, _STRIP_PX // pixels.shape[1])
    for start in range(0, out_height, strip):
        cells = slice(start, start + strip)
        # Rows first: whole rows are gathered at the speed of memory, and few are left to cut up.
        lines = _averaged(pixels, Shares(rows.first[cells], rows.weight[cells]))
        grey = _averaged(np.swapaxes(lines, 0, 1), columns)
        mean[cells] = np.clip(np.swapaxes(grey, 0, 1) + 0.5, 0, 255)
    return mean


@dataclass(frozen=True)
class Shares:
    """What cells along an axis are made of: ``weight [n, k]`` of the pixels ``first [n] + k``.

    Pixels beyond the last weigh nothing.
    """

    first: Int64
    weight: Float32


def cell_shares(start: float, end: float, cells: int) -> Shares:
    """The weights of an exact mean when ``start`` to ``end`` is cut into equal cells."""
    edges = np.linspace(start, end, cells + 1)
    first = np.floor(edges[:-1]).astype(np.int64)
    pixels = first[:, None] + np.arange(math.ceil((end - start) / cells) + 1)
    inside = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weight = np.clip(inside, 0.0, None) * (cells / (end - start))
    return Shares(first, weight.astype(np.float32))


def _averaged(values: UInt8 | Float32, shares: Shares) -> Float32:
    """Weighted means ``[n, ...]`` along axis 0 of ``values``."""
    last = values.shape[0] - 1
    means = np.zeros((len(shares.first), *values.shape[1:]), dtype=np.float32)
    for tap, weight in enumerate(shares.weight.T):
        means += values[np.minimum(shares.first + tap, last)] * weight[:, None, None]
    return means


__all__ = ["Shares", "area_average", "cell_shares", "reduce_by"]
