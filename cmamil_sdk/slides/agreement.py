"""Whether a reader's pixels are OpenSlide's, tried at a few places of each level before they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.tiff_grids import Box, Coding, LayoutUnknown, TileGrid

UInt8 = npt.NDArray[np.uint8]

LARGEST_DIFFERENCE: dict[Coding, int] = {"jpeg": 0, "jpeg 2000": 1}
"""Grey levels. JPEG 2000's irreversible transform ends in rounding, where builds of OpenJPEG differ."""


def places_that_agree(
    ours: SlideReader,
    theirs: SlideReader,
    grids: Mapping[int, TileGrid],
    *,
    telling: bool = False,
) -> int:
    """At how many places of the levels of ``grids`` both readers read the same.

    That is to the last bit, or within :data:`LARGEST_DIFFERENCE`.

    Four places a level, of one tile's size: the first tile, a corner where four meet, the last tile and
    its outside, and the tile with the most bytes, since the others may all be glass, which tells little.
    Damaged ones are passed over.

    Args:
        ours: the reader to be tried.
        theirs: the one that is right, OpenSlide's.
        grids: the levels that ``ours`` decodes itself, by number.
        telling: let no level pass by places of one colour alone: that of a decoder that decodes
            nothing is glass, too.

    Raises:
        LayoutUnknown: they differ, every place of a level is damaged, or none tells anything.
    """
    return sum(_level_agrees(ours, theirs, n, grid, telling) for n, grid in grids.items())


def _level_agrees(
    ours: SlideReader, theirs: SlideReader, level: int, grid: TileGrid, telling: bool
) -> int:
    equal, varied = 0, False
    for box in _sample_boxes(grid):
        expected, got = _pixels(theirs, level, box), _pixels(ours, level, box)
        if expected is None and got is None:
            continue
        if expected is None or got is None or not _alike(expected, got, grid.coding):
            raise LayoutUnknown(
                f"OpenSlide reads something else in level {level} at ({box[0]}, {box[1]})"
            )
        equal += 1
        varied = varied or _is_varied(got, grid, box)
    if not equal:
        raise LayoutUnknown(f"no tile that was tried in level {level} can be decoded")
    if telling and not varied:
        raise LayoutUnknown(f"every tile that was tried in level {level} is of one colour")
    return equal


def _alike(expected: UInt8, got: UInt8, coding: Coding) -> bool:
    difference = np.abs(expected.astype(np.int16) - got)
    return int(difference.max()) <= LARGEST_DIFFERENCE[coding]


def _is_varied(pixels: UInt8, grid: TileGrid, box: Box) -> bool:
    """Whether what lies in the level, of the pixels of a box, has more than one colour."""
    left, top, width, height = grid.inside(box)
    x, y = left - box[0], top - box[1]
    part = pixels[y : y + height, x : x + width]
    return bool((part != part[0, 0]).any())


def _sample_boxes(grid: TileGrid) -> Iterator[Box]:
    size = (grid.tile_width, grid.tile_height)
    corner_x = grid.columns // 2 * grid.tile_width - grid.tile_width // 2
    corner_y = grid.rows // 2 * grid.tile_height - grid.tile_height // 2
    yield (0, 0, *size)
    yield (corner_x, corner_y, *size)
    yield ((grid.columns - 1) * size[0], (grid.rows - 1) * size[1], *size)
    row, column = divmod(int(np.argmax(grid.byte_counts)), grid.columns)
    yield (column * size[0], row * size[1], *size)


def _pixels(reader: SlideReader, level: int, box: Box) -> UInt8 | None:
    """What ``reader`` makes of a box, or None if it is damaged."""
    try:
        return reader.read_region(level, *box)
    except SlideCorrupt:
        return None


__all__ = ["LARGEST_DIFFERENCE", "places_that_agree"]
