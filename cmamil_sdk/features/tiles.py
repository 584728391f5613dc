"""Pixels of a batch of tiles, all scales from one read of each block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import reduce_by
from cmamil_sdk.tiling.blocks import read_block
from cmamil_sdk.tiling.plan import TileBatch

UInt8 = npt.NDArray[np.uint8]
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
    geometry, px = batch.geometry, batch.geometry.tile_px
    pixels = np.empty((len(batch), px, px, 3), dtype=np.uint8)
    ok = np.ones(len(batch), dtype=bool)
    for number, (column, row) in enumerate(batch.blocks):
        finest, decoded = read_block(reader, geometry, int(column), int(row))
        members = np.flatnonzero(batch.tile_block == number)
        for scale in np.unique(batch.tile_scale[members]):
            ratio = geometry.ratios[scale]
            image = reduce_by(finest, ratio)
            for tile in members[batch.tile_scale[members] == scale]:
                x, y = batch.tile_index[tile]
                pixels[tile] = image[y * px : (y + 1) * px, x * px : (x + 1) * px]
                cells = decoded[y * ratio : (y + 1) * ratio, x * ratio : (x + 1) * ratio]
                ok[tile] = cells.all()
    return TilePixels(pixels, ok)


__all__ = ["TilePixels", "read_tiles"]
