"""Whether a vendor's file is whole: the libraries draw what is missing as empty glass or its neighbour.

Only the tables are read that say where tiles lie. Sources: the parsers of kfbslide 0.3.4 and
tmapslide 0.2.3, which have opened the file before.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt

_KFB_TILE_COUNT, _KFB_INDEX_START = 16, 68
_KFB_TILE = np.dtype({"names": ["bytes"], "formats": ["<u4"], "offsets": [32], "itemsize": 64})

_TMAP_LEVELS, _TMAP_MAX_LEVELS = 560, 16
_TMAP_LEVEL = np.dtype(
    {
        "names": ["width", "height", "rows", "columns", "index"],
        "formats": ["<u4"] * 5,
        "offsets": [8, 12, 16, 20, 24],
        "itemsize": 32,
    }
)
_TMAP_TILE = np.dtype(
    {"names": ["start", "bytes"], "formats": ["<u8", "<u4"], "offsets": [24, 32], "itemsize": 40}
)


def check_kfb(path: Path) -> None:
    """Refuse a KFB file with fewer bytes than its tiles and their table take (SlideCorrupt)."""
    (count,) = struct.unpack("<I", _bytes_at(path, _KFB_TILE_COUNT, 4))
    (start,) = struct.unpack("<Q", _bytes_at(path, _KFB_INDEX_START, 8))
    tiles = _table(path, start, count, _KFB_TILE)
    if tiles.nbytes + tiles["bytes"].sum(dtype=np.int64) > path.stat().st_size:
        raise _cut_short(path)


def check_tmap(path: Path) -> None:
    """Refuse a TMAP file of version 07 with a tile that lies beyond its end (SlideCorrupt)."""
    size = path.stat().st_size
    for level in _table(path, _TMAP_LEVELS, _TMAP_MAX_LEVELS, _TMAP_LEVEL):
        if level["width"] and level["height"]:
            count = int(level["rows"]) * int(level["columns"])
            tiles = _table(path, int(level["index"]), count, _TMAP_TILE)
            if (tiles["start"] + tiles["bytes"] > size).any():
                raise _cut_short(path)


def _table(path: Path, start: int, count: int, entry: np.dtype[np.void]) -> npt.NDArray[np.void]:
    return np.frombuffer(_bytes_at(path, start, count * entry.itemsize), entry)


def _bytes_at(path: Path, start: int, count: int) -> bytes:
    if start + count > path.stat().st_size:
        raise _cut_short(path)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)


def _cut_short(path: Path) -> SlideCorrupt:
    return SlideCorrupt(f"{path} is cut short; copy the file again from its source.")


__all__ = ["check_kfb", "check_tmap"]
