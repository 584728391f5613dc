"""Area averaging on a GPU: what :mod:`~cmamil_sdk.slides.resample` does, in CuPy.

Arrays are CuPy's; nothing here comes back to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cmamil_sdk.slides.resample import Box, Shares, cell_shares

AsArray = Callable[[Any], Any]
"""Puts a NumPy array on the device: ``cupy.asarray``."""


def reduce_by(pixels: Any, factor: int) -> Any:
    """Average blocks of ``factor`` x ``factor`` pixels of ``[H, W, 3]``, to the bit as on the host.

    Source: Pillow, ``Reduce.c``: a sum times a rounded reciprocal, in 32 bits.
    """
    if factor == 1:
        return pixels
    height, width, channels = pixels.shape
    cells = pixels.reshape(height // factor, factor, width // factor, factor, channels)
    area = factor**2
    reciprocal = int(np.float32(2**32) / np.float32(256 * area))
    sums = cells.sum(axis=(1, 3), dtype=np.uint32)
    return ((sums + area // 2) * reciprocal >> 24).astype(np.uint8)


def area_average(pixels: Any, box: Box, out_width: int, out_height: int, as_array: AsArray) -> Any:
    """Mean colour of each cell; arguments as :func:`~cmamil_sdk.slides.resample.area_average`.

    Cells that are no whole number of pixels wide may differ from the host's by one grey level, because
    sums of floating point numbers are taken in another order.
    """
    left, top, right, bottom = box
    factor = (right - left) / out_width
    whole = (left, top, factor, (bottom - top) / out_height)
    if all(float(v).is_integer() for v in whole) and whole[2] == whole[3]:
        return reduce_by(pixels[int(top) : int(bottom), int(left) : int(right)], int(factor))
    lines = _averaged(pixels, cell_shares(top, bottom, out_height), as_array)
    columns = cell_shares(left, right, out_width)
    grey = _averaged(lines.swapaxes(0, 1), columns, as_array).swapaxes(0, 1)
    return (grey + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def _averaged(values: Any, shares: Shares, as_array: AsArray) -> Any:
    """Weighted means ``[n, ...]`` along axis 0 of ``values``."""
    last = values.shape[0] - 1
    means = None
    for tap, weight in enumerate(shares.weight.T):
        taken = values[as_array(np.minimum(shares.first + tap, last))]
        part = taken * as_array(np.ascontiguousarray(weight[:, None, None]))
        means = part if means is None else means + part
    return means


__all__ = ["AsArray", "area_average", "reduce_by"]
