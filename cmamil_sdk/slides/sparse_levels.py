"""Levels of a TIFF that lack tiles where a finer level has some: OpenSlide would show glass there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.wording import counted

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
_Size = tuple[int, int]

_FILLS_FROM_FINER_LEVEL = "aperio"
"""The vendor, by OpenSlide's name, where OpenSlide draws a missing tile from the next finer level."""


@dataclass(frozen=True)
class StoredMap:
    """Which tiles of an image the file holds.

    Attributes:
        tile_width, tile_height: of every tile, pixels.
        stored: ``[rows, columns]`` bool.
    """

    tile_width: int
    tile_height: int
    stored: Bool


def without_sparse_levels(facts: SlideFacts, images: Mapping[_Size, StoredMap]) -> SlideFacts:
    """The facts without the first level that lacks what a finer one has, and those after it.

    Levels are addressed by their number, so none is taken out from between others. Missing tiles that no
    finer level has either are glass that was never stored.

    Args:
        facts: of the slide.
        images: the tiled images of the file by their size, pixels.
    """
    if facts.vendor == _FILLS_FROM_FINER_LEVEL:
        return facts
    for number, level in enumerate(facts.levels):
        image = images.get((level.width, level.height))
        lacking = 0 if image is None else _lacking(level, image, facts.levels[:number], images)
        if image is not None and lacking:
            warning = (
                f"Level {number} lacks {lacking} of {counted(image.stored.size, 'tile')} where finer "
                "levels have pixels; it and those after it are not read."
            )
            return replace(facts, levels=facts.levels[:number], warnings=(*facts.warnings, warning))
    return facts


def _lacking(
    level: Level, image: StoredMap, finer: tuple[Level, ...], images: Mapping[_Size, StoredMap]
) -> int:
    """How many tiles are missing from a level where any of the finer ones has stored some."""
    lost = np.zeros_like(image.stored)
    if not image.stored.all():
        for other in finer:
            known = images.get((other.width, other.height))
            if known is not None:
                lost |= ~image.stored & _reached(level, image, other, known)
    return int(np.count_nonzero(lost))


def _reached(level: Level, image: StoredMap, finer: Level, known: StoredMap) -> Bool:
    """For each tile of ``level``, whether a stored tile of ``finer`` lies in its place."""
    rows, columns = image.stored.shape
    scale = level.downsample / finer.downsample
    top, bottom = _span(rows, image.tile_height * scale, scale, known.tile_height, finer.height)
    left, right = _span(columns, image.tile_width * scale, scale, known.tile_width, finer.width)
    sums = np.pad(known.stored.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    within = (
        sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    )
    return np.asarray(within > 0)


def _span(
    tiles: int, tile_px: float, margin_px: float, finer_tile_px: int, finer_edge_px: int
) -> tuple[Int64, Int64]:
    """First and last (exclusive) tile of a finer level under each tile of a coarse one, along one axis.

    All in pixels of the finer level. The margin, one pixel of the coarse level, is left out at both ends:
    by so much levels may be shifted against each other by rounding.
    """
    starts = np.arange(tiles) * tile_px
    ends = np.minimum(starts + tile_px, finer_edge_px)
    last = -(-finer_edge_px // finer_tile_px)
    first = np.floor((starts + margin_px) / finer_tile_px).astype(np.int64).clip(0, last - 1)
    end = np.ceil((ends - margin_px) / finer_tile_px).astype(np.int64)
    return first, end.clip(first + 1, last)


__all__ = ["StoredMap", "without_sparse_levels"]
