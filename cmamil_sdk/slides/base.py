"""What every slide reader offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import MppUnknown, MppUnusable, SlideCorrupt
from cmamil_sdk.units import MicronsPerPixel

UInt8 = npt.NDArray[np.uint8]

ReaderKind = Literal["direct", "cucim", "openslide", "image", "plugin"]
"""The readers of this package, and ``plugin`` for all others."""

PLAUSIBLE_MPP = (0.05, 50.0)
"""Microns per pixel of level 0 outside this range are taken for nonsense."""


def mpp_of_objective(power: float) -> float:
    """Microns per pixel that scanners usually reach with an objective: 0.25 with 40x."""
    return 10.0 / power


@dataclass(frozen=True)
class Level:
    """One stored pyramid level: its size in pixels and how many level-0 pixels one of them spans."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class SlideFacts:
    """What opening a slide tells.

    Attributes:
        path: where it was opened.
        slide_id: file name without its last extension.
        width, height: level-0 pixels.
        bounds: ``(x, y, width, height)`` of the non-empty region, level-0 pixels.
        levels: finest first.
        mpp: microns per pixel of level 0, None when unknown or unusable.
        mpp_source: ``metadata``, ``override`` or ``unknown``.
        mpp_problem: why ``mpp`` is None although the file says something, else None.
        objective_power: nominal magnification the scanner wrote, None when absent.
        vendor: scanner family as OpenSlide names it.
        compression: of level 0 in a TIFF container, None elsewhere.
        reader, reader_reason: which reader serves this file, and why.
    """

    path: str
    slide_id: str
    width: int
    height: int
    bounds: tuple[int, int, int, int]
    levels: tuple[Level, ...]
    mpp: MicronsPerPixel | None
    mpp_source: str
    mpp_problem: str | None
    objective_power: float | None
    vendor: str
    compression: str | None
    reader: ReaderKind
    reader_reason: str
    warnings: tuple[str, ...] = ()

    def require_mpp(self) -> MicronsPerPixel:
        """Microns per pixel of level 0.

        Raises:
            MppUnknown: the file does not say.
            MppUnusable: what it says cannot be right.
        """
        if self.mpp is not None:
            return self.mpp
        usual = "about 0.25 for 40x, 0.5 for 20x"
        if self.objective_power:
            suggested = mpp_of_objective(self.objective_power)
            usual = f"its objective, {self.objective_power:g}x, suggests about {suggested:.3g}"
        if self.mpp_problem:
            raise MppUnusable(
                f"{self.path}: {self.mpp_problem}; give the true value with --mpp ({usual})."
            )
        raise MppUnknown(
            f"{self.path} does not say its microns per pixel; give it with --mpp ({usual})."
        )


class Closing:
    """A context manager that closes itself; for readers, which have a ``close`` of their own."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """The object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()


class SlideReader(Protocol):
    """Reads pixels of one slide. Not thread-safe: one reader per thread."""

    facts: SlideFacts

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8:
        """Pixels ``[height, width, 3]`` RGB at ``level``; ``x, y`` in pixels of that level.

        What lies outside the level, or was never scanned, is white.

        Raises:
            SlideCorrupt: the pixels cannot be decoded; the reader stays usable.
        """
        ...

    def thumbnail(self, max_px: int) -> UInt8:
        """The bounds of the slide, ``[h, w, 3]`` RGB, neither edge longer than ``max_px``."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...

    def __enter__(self) -> Self:
        """The reader itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the reader."""
        ...


def undecodable(path: Path, x: int, y: int, level: int, problem: object) -> SlideCorrupt:
    """The error of a region that cannot be decoded, with what says why; ``x, y`` in level-0 pixels."""
    return SlideCorrupt(
        f"{path}: the region at ({x}, {y}), level {level}, cannot be decoded ({problem}); "
        "copy the file again from its source."
    )


__all__ = [
    "PLAUSIBLE_MPP",
    "Closing",
    "Level",
    "ReaderKind",
    "SlideFacts",
    "SlideReader",
    "mpp_of_objective",
    "undecodable",
]
