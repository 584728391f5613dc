"""Pixels of a batch of tiles in the memory of a GPU; see :mod:`cmamil_sdk.features.tiles`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.features.tiles import TilePixels, cut_block, own_place
from cmamil_sdk.slides.cuda_reader import CudaReader
from cmamil_sdk.slides.device_resample import reduce_by
from cmamil_sdk.tiling.batches import TileBatch
from cmamil_sdk.tiling.blocks import block_square, own_square, read_block, read_own_tile
from cmamil_sdk.tiling.device_blocks import decode_squares
from cmamil_sdk.tiling.geometry import OwnLevel

Int64 = npt.NDArray[np.int64]


def read_device_tiles(reader: CudaReader, batch: TileBatch) -> TilePixels:
    """Read every tile of ``batch`` into the GPU's memory; complete when returned.

    What the GPU does not decode, the host reads as it always does, and hands over.
    """
    px = batch.geometry.tile_px
    with reader.stream as stream:
        found = TilePixels(
            pixels=reader.room((len(batch), px, px, 3)), ok=np.ones(len(batch), dtype=bool)
        )
        from_finest = np.ones(len(batch), dtype=bool)
        for scale, own in enumerate(batch.geometry.own_levels):
            if own is not None:
                members = batch.tile_scale == scale
                from_finest &= ~members
                _read_own(reader, batch, own, np.flatnonzero(members), found)
        _read_blocks(reader, batch, np.flatnonzero(from_finest), found)
        stream.synchronize()
    return found


def _read_own(
    reader: CudaReader, batch: TileBatch, own: OwnLevel, members: Int64, found: TilePixels
) -> None:
    """Read the tiles ``members`` of a scale from its own level."""
    if not len(members):
        return
    scale = int(batch.tile_scale[members[0]])
    places = [own_place(batch, tile) for tile in members.tolist()]
    squares = [own_square(batch.geometry, scale, own, *place) for place in places]
    decoded = decode_squares(reader, batch.geometry, squares)
    for number, tile in enumerate(members.tolist()):
        if number in decoded:
            found.pixels[tile] = decoded[number]
            continue
        try:
            pixels = read_own_tile(reader, batch.geometry, scale, own, *places[number])
        except SlideCorrupt:
            found.ok[tile] = False
        else:
            found.pixels[tile] = reader.to_device(pixels)


def _read_blocks(reader: CudaReader, batch: TileBatch, tiles: Int64, found: TilePixels) -> None:
    """Read the blocks of the ``tiles``, and cut these from them."""
    geometry = batch.geometry
    numbers = np.unique(batch.tile_block[tiles])
    places = batch.blocks[numbers].tolist()
    squares = [block_square(geometry, column, row) for column, row in places]
    on_device = decode_squares(reader, geometry, squares)
    whole = np.ones((geometry.block_ratio, geometry.block_ratio), dtype=bool)
    for place, number in enumerate(numbers):
        members = tiles[batch.tile_block[tiles] == number]
        if place in on_device:
            cut_block(batch, members, on_device[place], whole, found, reduce_by)
        else:
            pixels, decoded = read_block(reader, geometry, *places[place])
            cut_block(batch, members, reader.to_device(pixels), decoded, found, reduce_by)


__all__ = ["read_device_tiles"]
