"""A thumbnail of a slide of which a part cannot be decoded."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides import SlideReader
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.tiling.low_power import MAX_LOST_SHARE

UInt8 = npt.NDArray[np.uint8]

LOST = (90, 200, 210)
"""The colour of what cannot be decoded: of no stain and no ink that is told from tissue."""

_SMALLEST_PX = 64


def thumbnail_with_holes(reader: SlideReader, max_px: int) -> tuple[UInt8, bool]:
    """As :func:`~cmamil_sdk.slides.thumbnail.bounds_thumbnail`, and whether a part of it is ``LOST``.

    Raises:
        SlideCorrupt: more than 5 % cannot be decoded.
    """
    holey = _HoleyReader(reader)
    picture = bounds_thumbnail(cast(SlideReader, holey), max_px)
    return picture, holey.lost_px > 0


class _HoleyReader:
    """As much of a :class:`SlideReader` as a thumbnail needs; holes are enclosed by halving."""

    def __init__(self, reader: SlideReader) -> None:
        self.facts = reader.facts
        self.lost_px = 0
        self._reader = reader

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` at ``level``, filled with a colour where there are none."""
        try:
            return self._reader.read_region(level, x, y, width, height)
        except SlideCorrupt:
            if max(width, height) <= _SMALLEST_PX:
                self._count(level, width * height)
                return np.full((height, width, 3), LOST, dtype=np.uint8)
        if width >= height:
            half = width // 2
            left = self.read_region(level, x, y, half, height)
            right = self.read_region(level, x + half, y, width - half, height)
            return np.concatenate([left, right], axis=1)
        half = height // 2
        upper = self.read_region(level, x, y, width, half)
        lower = self.read_region(level, x, y + half, width, height - half)
        return np.concatenate([upper, lower])

    def _count(self, level: int, pixels: int) -> None:
        self.lost_px += pixels
        stored = self.facts.levels[level]
        if self.lost_px > MAX_LOST_SHARE * stored.width * stored.height:
            raise SlideCorrupt(
                f"{self.facts.path}: more than {MAX_LOST_SHARE:.0%} of level {level} cannot be decoded; "
                "copy the file again from its source."
            )


__all__ = ["LOST", "thumbnail_with_holes"]
