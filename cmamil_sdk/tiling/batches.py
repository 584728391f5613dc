"""The units of work of a plan: whole blocks, with the tiles wanted of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from cmamil_sdk.tiling.geometry import ReadGeometry

Int64 = npt.NDArray[np.int64]

_STRIP_TILES = 4
"""Height of the strips in which blocks are taken, in tiles of the finest scale."""


@dataclass(frozen=True)
class TileBatch:
    """One unit of work: a few blocks and the tiles wanted of each. Small and picklable.

    ``tile_block`` points into ``blocks`` and only grows; ``tile_index`` is the tile's ``(column, row)``
    within its block at its own scale; ``plan_row`` is the tile's row in the plan's scale.
    """

    geometry: ReadGeometry
    blocks: Int64  # [B, 2] (column, row)
    tile_block: Int64  # [T]
    tile_scale: Int64  # [T]
    tile_index: Int64  # [T, 2]
    plan_row: Int64  # [T]

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.plan_row)

    def parts(self, tiles: int) -> list[TileBatch]:
        """The batch cut into batches of whole blocks with about ``tiles`` tiles each, in order."""
        starts = np.flatnonzero(np.diff(self.tile_block, prepend=-1))
        bounds = _batch_bounds(starts, len(self), tiles).tolist()
        return [self._part(slice(first, last)) for first, last in itertools.pairwise(bounds)]

    def _part(self, tiles: slice) -> TileBatch:
        block = self.tile_block[tiles]
        return TileBatch(
            geometry=self.geometry,
            blocks=self.blocks[block[0] : block[-1] + 1],
            tile_block=block - block[0],
            tile_scale=self.tile_scale[tiles],
            tile_index=self.tile_index[tiles],
            plan_row=self.plan_row[tiles],
        )


class TileBatches(Sequence[TileBatch]):
    """The batches of a plan, each made when it is asked for: what is kept is a few numbers a tile.

    Args:
        geometry: of the plan.
        index: per scale ``[N, 2]`` int64 ``(column, row)`` of its tiles in the grid.
        batch_tiles: a batch takes further blocks as long as it has no more tiles than these.
    """

    def __init__(self, geometry: ReadGeometry, index: Sequence[Int64], batch_tiles: int) -> None:
        self._geometry = geometry
        block, self._scale, self._index, self._row = _tiles_by_block(geometry, index)
        self._block = block
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        self._bounds = _batch_bounds(starts, len(block), batch_tiles)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, number: int) -> TileBatch: ...

    @overload
    def __getitem__(self, number: slice) -> list[TileBatch]: ...

    def __getitem__(self, number: int | slice) -> TileBatch | list[TileBatch]:
        """One batch, or several."""
        numbers = range(len(self))[number]
        if isinstance(numbers, range):
            return [self._batch(one) for one in numbers]
        return self._batch(numbers)

    def _batch(self, number: int) -> TileBatch:
        tiles = slice(self._bounds[number], self._bounds[number + 1])
        numbers, position = np.unique(self._block[tiles], return_inverse=True)
        columns = self._geometry.columns
        return TileBatch(
            geometry=self._geometry,
            blocks=np.stack([numbers % columns, numbers // columns], axis=1),
            tile_block=position.astype(np.int64),
            tile_scale=self._scale[tiles].astype(np.int64),
            tile_index=self._index[tiles].astype(np.int64),
            plan_row=self._row[tiles].astype(np.int64),
        )


def _tiles_by_block(geometry: ReadGeometry, index: Sequence[Int64]) -> tuple[npt.NDArray[Any], ...]:
    """Block, scale, place in the block ``[T, 2]`` and row of every tile, in the order of the blocks.

    Blocks are taken along strips, column by column: what is stored in tiles is then read of tiles
    that were decoded just before, as far as possible.
    """
    columns, ratio = geometry.columns, geometry.block_ratio
    strip = max(1, _STRIP_TILES // ratio)
    parts = []
    for number, places in enumerate(index):
        per_block = ratio // geometry.ratios[number]
        column, row = places[:, 0] // per_block, places[:, 1] // per_block
        n = len(places)
        parts.append(
            (
                row * columns + column,
                np.full(n, number, np.uint8),
                (places % per_block).astype(np.int32),
                np.arange(n, dtype=np.int32),
            )
        )
    block, scale, place, row = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    block_column, block_row = block % columns, block // columns
    order = np.lexsort((block_row, block_column, block_row // strip))
    return block[order], scale[order], place[order], row[order]


def _batch_bounds(starts: Int64, tiles: int, batch_tiles: int) -> Int64:
    """Where batches begin among tiles whose blocks begin at ``starts``, and where the last one ends."""
    if not tiles:
        return np.zeros(1, dtype=np.int64)
    bounds = [0]
    ends = np.append(starts[1:], tiles)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if start > bounds[-1] and end - bounds[-1] > batch_tiles:
            bounds.append(start)
    return np.array([*bounds, tiles], dtype=np.int64)


__all__ = ["TileBatch", "TileBatches"]
