"""The bytes of single tiles, read from the file at their offsets."""

from __future__ import annotations

import os
from pathlib import Path

from cmamil_sdk.slides.jpeg_tiles import DamagedTile
from cmamil_sdk.slides.tiff_grids import LayoutUnknown, TileGrid


class StoredTiles:
    """One open file. Several threads may read at once: they share a file descriptor and nothing else."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            LayoutUnknown: it cannot be opened, or this system cannot read at an offset.
        """
        if not hasattr(os, "pread"):
            raise LayoutUnknown("this system has no pread")
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            raise LayoutUnknown(
                f"it cannot be opened a second time ({problem.strerror})"
            ) from problem

    def read(self, grid: TileGrid, number: int) -> bytes:
        """What the file stores of tile ``number`` of a level.

        Raises:
            DamagedTile: it lies beyond the file, claims more bytes than a tile can have, or is refused.
        """
        size = int(grid.byte_counts[number])
        if size > grid.max_tile_bytes:
            raise DamagedTile(f"a tile claims {size} bytes")
        try:
            stored = os.pread(self.fd, size, int(grid.offsets[number]))
        except OSError as problem:
            raise DamagedTile(f"a tile cannot be read: {problem.strerror}") from problem
        if len(stored) < size:
            raise DamagedTile("the file ends within a tile")
        return stored

    def close(self) -> None:
        """Release the file; reading then raises DamagedTile."""
        fd, self.fd = self.fd, -1  # the number may soon belong to another file
        if fd >= 0:
            os.close(fd)


__all__ = ["StoredTiles"]
