"""A slide that has been read and encoded: all that a prediction needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cmamil_sdk.features.bag import Bag
from cmamil_sdk.slides.base import SlideFacts


@dataclass(frozen=True)
class ExtractedSlide:
    """The bag of a slide, and what its plan said.

    Attributes:
        facts: of the slide.
        tile_size_level0: per scale, edge of a tile, level-0 pixels.
        planned: per scale, how many tiles were to be read.
        tiles_failed: of these, how many could not be decoded.
        bag: the others.
    """

    facts: SlideFacts
    tile_size_level0: Mapping[str, float]
    planned: Mapping[str, int]
    tiles_failed: int
    bag: Bag

    @property
    def total_planned(self) -> int:
        """Number of tiles that were to be read, over all scales."""
        return sum(self.planned.values())


__all__ = ["ExtractedSlide"]
