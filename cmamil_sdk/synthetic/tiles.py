"""Tiles of generated tissue, as an encoder sees a slide: several stains, near and far."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmamil_sdk.slides.resample import reduce_by
from cmamil_sdk.synthetic.stains import draw_stain, stain_pixels
from cmamil_sdk.synthetic.tissue import draw_tissue

_LABELS = ("benign", "in_situ", "invasive")
_REDUCTIONS = (1, 2, 4)
_CELLS = 24
_LEAST_PX = 1344


def tissue_tiles(tile_px: int) -> NDArray[np.uint8]:
    """Seeded tiles ``[18, px, px, 3]``: three drawings, each at 20x (3 tiles), 10x (2) and 5x (1)."""
    return np.concatenate(
        [_of_one_drawing(label, seed, tile_px) for seed, label in enumerate(_LABELS)]
    )


def _of_one_drawing(label: str, seed: int, tile_px: int) -> NDArray[np.uint8]:
    edge = _REDUCTIONS[-1] * tile_px
    drawn_px = max(edge, _LEAST_PX)
    drawing = draw_tissue(label, _CELLS, drawn_px, drawn_px, seed=seed, bank_seed=0)
    stain = draw_stain(np.random.default_rng([seed, 0]))
    pixels = stain_pixels(drawing.haematoxylin, drawing.eosin, stain)
    start = (drawn_px - edge) // 2
    pixels = pixels[start : start + edge, start : start + edge]
    tiles = []
    for reduction in _REDUCTIONS:
        image = reduce_by(pixels, reduction)
        grid = image.reshape(len(image) // tile_px, tile_px, -1, tile_px, 3).swapaxes(1, 2)
        every = grid.reshape(-1, tile_px, tile_px, 3)
        wanted = len(_REDUCTIONS) - _REDUCTIONS.index(reduction)
        tiles += list(every[:: len(every) // wanted][:wanted])
    return np.stack(tiles)


__all__ = ["tissue_tiles"]
