"""Pixels of a batch of tiles: from one read of each block for all scales without a level of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import reduce_by
from cmamil_sdk.tiling.blocks import read_block, read_own_tile
from cmamil_sdk.tiling.geometry import OwnLevel
from cmamil_sdk.tiling.plan import TileBatch

UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TilePixels:
    """Tiles of a batch in the batch's order: ``pixels [T, px, px, 3]`` uint8, ``ok [T]`` bool.

    Where ``ok`` is False the tile could not be decoded and its pixels mean nothing.
    """

    pixels: UInt8
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
            _read_from_finest(reader, batch, number, members, found)
    return found


def _read_own(
    reader: SlideReader, batch: TileBatch, own: OwnLevel, members: Int64, found: TilePixels
) -> None:
    """Read the tiles ``members`` of a scale from its own level."""
    geometry = batch.geometry
    for tile in members:
        scale = int(batch.tile_scale[tile])
        per_block = geometry.block_ratio // geometry.ratios[scale]
        place = batch.blocks[batch.tile_block[tile]] * per_block + batch.tile_index[tile]
        column, row = place.tolist()
        try:
            found.pixels[tile] = read_own_tile(reader, geometry, scale, own, column, row)
        except SlideCorrupt:
            found.ok[tile] = False


def _read_from_finest(
    reader: SlideReader, batch: TileBatch, block: int, members: Int64, found: TilePixels
) -> None:
    """Read a block at the finest scale, and cut the tiles ``members`` from it."""
    geometry, px = batch.geometry, batch.geometry.tile_px
    column, row = batch.blocks[block].tolist()
    finest, decoded = read_block(reader, geometry, column, row)
    for scale in np.unique(batch.tile_scale[members]):
        ratio = geometry.ratios[scale]
        image = reduce_by(finest, ratio)
        for tile in members[batch.tile_scale[members] == scale]:
            x, y = batch.tile_index[tile]
            found.pixels[tile] = image[y * px : (y + 1) * px, x * px : (x + 1) * px]
            cells = decoded[y * ratio : (y + 1) * ratio, x * ratio : (x + 1) * ratio]
            found.ok[tile] = cells.all()


__all__ = ["TilePixels", "read_tiles"]
