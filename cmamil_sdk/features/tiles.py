"""Pixels of a batch of tiles: from one read of each block for all scales without a level of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import reduce_by
from cmamil_sdk.tiling.blocks import read_block, read_own_tile
from cmamil_sdk.tiling.geometry import OwnLevel
from cmamil_sdk.tiling.plan import TileBatch

Int64 = npt.NDArray[np.int64]
BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TilePixels:
    """Tiles of a batch in the batch's order: ``pixels [T, px, px, 3]`` uint8, ``ok [T]`` bool.

    The pixels lie on the host, or in CuPy's array on a GPU. Where ``ok`` is False the tile could not be
    decoded and its pixels mean nothing.
    """

    pixels: Any
    ok: BoolMask


def read_tiles(reader: SlideReader, batch: TileBatch) -> TilePixels:
    """Read every tile of ``batch``; a tile that cannot be decoded is marked, the others are read."""
    px = batch.geometry.tile_px
    found = TilePixels(
        pixels=np.empty((len(batch), px, px, 3), dtype=np.uint8),
        ok=np.ones(len(batch), dtype=bool),
    )
    from_finest = np.ones(len(batch), dtype=bool)
    for scale, own in enumerate(batch.geometry.own_levels):
        if own is not None:
            members = batch.tile_scale == scale
            from_finest &= ~members
            _read_own(reader, batch, own, np.flatnonzero(members), found)
    for number in range(len(batch.blocks)):
        members = np.flatnonzero(from_finest & (batch.tile_block == number))
        if len(members):
            column, row = batch.blocks[number].tolist()
            finest, decoded = read_block(reader, batch.geometry, column, row)
            cut_block(batch, members, finest, decoded, found, reduce_by)
    return found


def own_place(batch: TileBatch, tile: int) -> tuple[int, int]:
    """Column and row of a tile in the whole grid of its scale."""
    per_block = batch.geometry.block_ratio // batch.geometry.ratios[batch.tile_scale[tile]]
    place = batch.blocks[batch.tile_block[tile]] * per_block + batch.tile_index[tile]
    column, row = place.tolist()
    return column, row


def cut_block(
    batch: TileBatch,
    members: Int64,
    finest: Any,
    decoded: BoolMask,
    found: TilePixels,
    reduce: Callable[[Any, int], Any],
) -> None:
    """Cut the tiles ``members`` of all scales from a block of the finest.

    Args:
        batch: which tiles.
        members: numbers of the tiles in the batch.
        finest: the block ``[block_px, block_px, 3]``.
        decoded: which of its finest tiles could be decoded, ``[ratio, ratio]`` (row, column).
        found: takes the tiles.
        reduce: averages the block by a whole number, where it lies.
    """
    px = batch.geometry.tile_px
    for scale in np.unique(batch.tile_scale[members]):
        ratio = batch.geometry.ratios[scale]
        image = reduce(finest, ratio)
        for tile in members[batch.tile_scale[members] == scale].tolist():
            x, y = batch.tile_index[tile].tolist()
            found.pixels[tile] = image[y * px : (y + 1) * px, x * px : (x + 1) * px]
            cells = decoded[y * ratio : (y + 1) * ratio, x * ratio : (x + 1) * ratio]
            found.ok[tile] = cells.all()


def _read_own(
    reader: SlideReader, batch: TileBatch, own: OwnLevel, members: Int64, found: TilePixels
) -> None:
    """Read the tiles ``members`` of a scale from its own level."""
    for tile in members.tolist():
        scale = int(batch.tile_scale[tile])
        place = own_place(batch, tile)
        try:
            found.pixels[tile] = read_own_tile(reader, batch.geometry, scale, own, *place)
        except SlideCorrupt:
            found.ok[tile] = False


__all__ = ["TilePixels", "cut_block", "own_place", "read_tiles"]
