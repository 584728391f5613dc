"""The edge density of a tile, by which CMA-MIL's published tiler tells tissue from glass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

EDGE_DENSITY_THRESHOLD = 15.0
"""The published tiler keeps a tile whose score is above this."""


def edge_density(tile_rgb: UInt8, *, tile_size_px: int | None) -> float:
    """Mean edge strength of a tile, averaged over red, green and blue.

    Each pixel's edge strength is eight times itself less its eight neighbours, clipped to 0..255, in
    each channel; the outermost pixels, which lack neighbours, count with their own grey value. So white
    glass scores 4.53 in a tile of 224 px, and black 0. This is Pillow's ``FIND_EDGES``.

    Args:
        tile_rgb: ``[h, w, 3]`` uint8. At the right and lower edge of a slide h or w may be smaller than
            a whole tile.
        tile_size_px: edge of a whole tile, by whose area the sum is divided: as published, a part of a
            tile then scores less than a whole tile of the same tissue. None divides by the tile's own
            area, h * w.

    Returns:
        The score, 0 to 255. An empty tile scores 0.

    Source: ``WSI_Core/patch_tiling.py`` of CMA-MIL, which has it from DSMIL's ``deepzoom_tiler.py``.
    """
    height, width = tile_rgb.shape[:2]
    if height == 0 or width == 0:
        return 0.0
    values = tile_rgb.astype(np.int16)
    total = int(values.sum(dtype=np.int64))
    if height > 2 and width > 2:
        three_rows = values[:-2] + values[1:-1] + values[2:]
        neighbourhood = three_rows[:, :-2] + three_rows[:, 1:-1] + three_rows[:, 2:]
        inner = values[1:-1, 1:-1]
        edges = np.clip(9 * inner - neighbourhood, 0, 255)
        total += int(edges.sum(dtype=np.int64)) - int(inner.sum(dtype=np.int64))
    area = height * width if tile_size_px is None else tile_size_px * tile_size_px
    return total / (3 * area)


__all__ = ["EDGE_DENSITY_THRESHOLD", "edge_density"]
