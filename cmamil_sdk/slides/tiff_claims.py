"""What the directories of a TIFF claim that no file holds: OpenSlide believes them.

It asks for as much memory as a tile claims, and ends the process when it gets none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.sparse_levels import StoredMap
from cmamil_sdk.slides.tiff_grids import UNPARSABLE
from cmamil_sdk.slides.tiff_pages import tiff_pages
from cmamil_sdk.wording import counted

_Box = tuple[int, int, int, int]
_Size = tuple[int, int]

_MAX_TILE_PX = 2**26
_BYTES_PER_PX = 16
"""Four samples of 16 bits, and as much again for coding that goes wrong."""
_HEADER_BYTES = 2**20


@dataclass(frozen=True)
class TiffClaims:
    """What is known of a TIFF before its pixels are read.

    Attributes:
        compression: of level 0 by name, None of what is no TIFF or is only parsed by its vendor's reader.
        oversized: tiles that claim more bytes than they can have, as boxes ``(x, y, width, height)`` in
            pixels of the image of this size ``(width, height)``.
        stored: which tiles of the image of this size are in the file; empty where no tile is left out.
        warnings: what the user should know: tiles of level 0 that are left out.
    """

    compression: str | None = None
    oversized: Mapping[_Size, Sequence[_Box]] = field(default_factory=dict)
    stored: Mapping[_Size, StoredMap] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def covers_oversized(self, size: _Size, box: _Box) -> bool:
        """Whether a box of the image of this size touches such a tile."""
        x, y, width, height = box
        return any(
            x < left + w and left < x + width and y < top + h and top < y + height
            for left, top, w, h in self.oversized.get(size, ())
        )


def tiff_claims(path: Path) -> TiffClaims:
    """Look through the directories of a file.

    Raises:
        SlideCorrupt: a tile has more pixels than memory is asked for, or an image is of another size than
            its list of tiles.
    """
    try:
        file_bytes = path.stat().st_size
        with tiff_pages(path) as pages:
            largest_px = max(page.tilewidth * page.tilelength for page in pages)
            compression = _name(pages[0].compression)
            warnings = _left_out(pages[0]) if pages[0].is_tiled else ()
            misfit = next(filter(None, map(_misfit, pages)), None)
            oversized = {
                (page.imagewidth, page.imagelength): boxes
                for page in pages
                if page.is_tiled and (boxes := _oversized(page, file_bytes))
            }
            stored = {} if misfit else _stored(pages)
    except UNPARSABLE:
        return TiffClaims()
    if largest_px > _MAX_TILE_PX:
        raise SlideCorrupt(
            f"{path} claims to hold a tile of {largest_px} pixels, {_MAX_TILE_PX} are read; copy the "
            "file again from its source, or convert it to smaller tiles."
        )
    if misfit:
        raise SlideCorrupt(f"{path}: {misfit}; copy the file again from its source.")
    return TiffClaims(compression, oversized, stored, warnings)


def _oversized(page: tifffile.TiffPage, file_bytes: int) -> list[_Box]:
    width, height = page.tilewidth, page.tilelength
    limit = min(file_bytes, _BYTES_PER_PX * width * height + _HEADER_BYTES)
    counts: npt.NDArray[np.uint64] = np.array(page.databytecounts, dtype=np.uint64)
    columns = -(-page.imagewidth // width)
    return [
        (number % columns * width, number // columns * height, width, height)
        for number in np.flatnonzero(counts > limit).tolist()
    ]


def _misfit(page: tifffile.TiffPage) -> str | None:
    """What is wrong if an image lists more or fewer tiles than it has: tiles would be misplaced."""
    listed = len(page.databytecounts)
    if not page.is_tiled or not listed:
        return None
    columns = -(-page.imagewidth // page.tilewidth)
    tiles = columns * -(-page.imagelength // page.tilelength) * max(1, page.imagedepth)
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        tiles *= page.samplesperpixel
    if listed == tiles:
        return None
    return (
        f"an image of {page.imagewidth} x {page.imagelength} pixels lists {counted(listed, 'tile')} "
        f"instead of {tiles}"
    )


def _stored(pages: Sequence[tifffile.TiffPage]) -> dict[_Size, StoredMap]:
    """Which tiles of each tiled image have bytes; of images of one size, of the first."""
    found: dict[_Size, StoredMap] = {}
    for page in pages:
        counts: npt.NDArray[np.uint64] = np.array(page.databytecounts, dtype=np.uint64)
        if page.is_tiled and counts.size:
            grid = (-(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth))
            whole = np.asarray((counts > 0).reshape(-1, *grid).all(axis=0))
            size = (page.imagewidth, page.imagelength)
            found.setdefault(size, StoredMap(page.tilewidth, page.tilelength, whole))
    return {} if all(image.stored.all() for image in found.values()) else found


def _left_out(page: tifffile.TiffPage) -> tuple[str, ...]:
    counts = np.array(page.databytecounts, dtype=np.uint64)
    missing = int(np.count_nonzero(counts == 0))
    if not missing:
        return ()
    return (
        f"{missing} of {counted(counts.size, 'tile')} of level 0 are not stored; they are read as white "
        "glass.",
    )


def _name(compression: int) -> str:
    try:
        return str(tifffile.COMPRESSION(compression).name).lower()
    except ValueError:
        return str(int(compression))


__all__ = ["TiffClaims", "tiff_claims"]
