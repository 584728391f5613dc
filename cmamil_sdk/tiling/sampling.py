"""A cap on the tiles of a slide: which of them are read, drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cmamil_sdk.tiling.recipe import TileSample

BoolMask = npt.NDArray[np.bool_]


def sample_tiles(kept: Sequence[BoolMask], sample: TileSample) -> list[BoolMask]:
    """Keep ``sample.max_tiles`` tiles of the finest scale, or all if there are fewer.

    Whole tiles of the coarsest scale are drawn, each with every tile inside it, until the cap is
    reached; of the last one, as many finest tiles are drawn as still fit. So all but one coarse tile
    keep their whole neighbourhood, and no more of the slide is decoded than is used. A place's turn
    depends on the seed and on the size of the grid, not on where tissue is.

    Args:
        kept: ``[rows, columns]`` bool per scale, coarse to fine: the tiles to choose from.
        sample: the cap and the seed.
    """
    finest = kept[-1]
    if int(finest.sum()) <= sample.max_tiles:
        return list(kept)
    # NumPy promises the same raw numbers for a seed in every version; of other draws it does not.
    stream = np.random.PCG64(sample.seed)
    rows, columns = kept[0].shape
    step = finest.shape[0] // rows
    order = np.argsort(stream.random_raw(rows * columns), kind="stable")
    counts = finest.reshape(rows, step, columns, step).sum(axis=(1, 3)).ravel()[order]
    until = np.cumsum(counts)
    last = int(np.searchsorted(until, sample.max_tiles))  # the first to reach the cap
    taken = np.zeros(rows * columns, dtype=bool)
    taken[order[: last + 1]] = True
    blocks = taken.reshape(rows, columns)
    chosen = [mask & _enlarged(blocks, mask.shape[0] // rows) for mask in kept]
    surplus = int(until[last]) - sample.max_tiles
    of_last = chosen[-1] & _enlarged(_only(int(order[last]), blocks.shape), step)
    places = np.flatnonzero(of_last)
    turns = np.argsort(stream.random_raw(len(places)), kind="stable")
    chosen[-1].flat[places[turns[:surplus]]] = False
    return chosen


def _enlarged(mask: BoolMask, step: int) -> BoolMask:
    return mask.repeat(step, axis=0).repeat(step, axis=1)


def _only(place: int, shape: tuple[int, ...]) -> BoolMask:
    mask = np.zeros(shape, dtype=bool)
    mask.flat[place] = True
    return mask


__all__ = ["sample_tiles"]
