"""Area averaging: the only way this package makes pixels coarser."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]


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
    rows = _cell_sums(pixels.astype(np.float32), np.linspace(top, bottom, out_height + 1))
    cells = _cell_sums(np.swapaxes(rows, 0, 1), np.linspace(left, right, out_width + 1))
    area = (right - left) / out_width * (bottom - top) / out_height
    mean: UInt8 = np.clip(np.swapaxes(cells, 0, 1) / area + 0.5, 0, 255).astype(np.uint8)
    return mean


def _cell_sums(values: Float32, edges: npt.NDArray[np.float64]) -> Float32:
    """Integrate ``values`` along axis 0 between consecutive ``edges``, pixels as unit steps."""
    total = np.zeros((values.shape[0] + 1, *values.shape[1:]), dtype=np.float64)
    np.cumsum(values, axis=0, out=total[1:])
    edges = np.clip(edges, 0.0, values.shape[0])
    below = np.minimum(edges.astype(np.int64), values.shape[0] - 1)
    share = (edges - below)[:, None, None]
    integral = total[below] + share * values[below]
    sums: Float32 = np.diff(integral, axis=0).astype(np.float32)
    return sums


__all__ = ["area_average", "reduce_by"]
