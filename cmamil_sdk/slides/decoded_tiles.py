"""The stored tiles that were decoded last, for the next region that touches them."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Key = tuple[int, int]

MAX_BYTES = 12_000_000
"""Room for two columns of stored tiles of 512 pixels along a strip of 1792: four 20x tiles at 40x.

Larger ones are decoded more than once.
"""


class DecodedTiles:
    """Pixels by level and number of the tile; those that were not asked for longest go first.

    May be used by several threads at once.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[Key, UInt8] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> UInt8 | None:
        """A tile that is here, else None."""
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: Key, tile: UInt8) -> None:
        """Keep a tile, and drop others where there is no room; one that is too large is not kept."""
        if tile.nbytes > self._max_bytes:
            return
        tile.flags.writeable = False
        with self._lock:
            if key in self._tiles:
                return  # another thread was faster
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes


__all__ = ["MAX_BYTES", "DecodedTiles"]
