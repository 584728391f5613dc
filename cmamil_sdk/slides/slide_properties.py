"""What a slide's metadata says, by the same rules for every reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import openslide

from cmamil_sdk.slides.base import PLAUSIBLE_MPP, Level, SlideFacts
from cmamil_sdk.units import MicronsPerPixel

_MAX_ANISOTROPY = 0.02
_OVERRIDE_CONFLICT = 0.05


class OpenSlideLike(Protocol):
    """The part of OpenSlide's interface that says what a slide is."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Metadata by OpenSlide's names."""
        ...

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0."""
        ...

    @property
    def level_dimensions(self) -> Sequence[tuple[int, int]]:
        """Width and height of each level, finest first."""
        ...

    @property
    def level_downsamples(self) -> Sequence[float]:
        """Level-0 pixels that a pixel of each level spans."""
        ...


@dataclass(frozen=True)
class MppFacts:
    """The microns per pixel of level 0 that hold for a slide, and why.

    Attributes:
        mpp: None when unknown or unusable.
        source: ``override``, ``metadata`` or ``unknown``.
        problem: why ``mpp`` is None although the file says something, else None.
        warnings: what the user should know of the choice.
    """

    mpp: MicronsPerPixel | None
    source: str
    problem: str | None
    warnings: tuple[str, ...]


def mpp_facts(x: float | None, y: float | None, *, override: float | None) -> MppFacts:
    """Choose between what a file states (microns per pixel along each axis) and what was given."""
    stated, problem = _usable_mpp(x, y)
    if override is None:
        source = "metadata" if stated else "unknown"
        return MppFacts(None if stated is None else MicronsPerPixel(stated), source, problem, ())
    warnings: tuple[str, ...] = ()
    if stated and abs(override / stated - 1) > _OVERRIDE_CONFLICT:
        warnings = (
            f"The slide's metadata says {stated:.4g} µm/px; {override:.4g} was given and is used.",
        )
    return MppFacts(MicronsPerPixel(override), "override", None, warnings)


def slide_facts(
    path: Path,
    slide: OpenSlideLike,
    *,
    override_mpp: float | None,
    compression: str | None,
    reader: Literal["openslide", "plugin"],
    reason: str,
) -> SlideFacts:
    """The facts of a slide whose metadata has OpenSlide's names."""
    properties = slide.properties
    width, height = slide.dimensions
    mpp = mpp_facts(
        number(properties.get(openslide.PROPERTY_NAME_MPP_X)),
        number(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
        override=override_mpp,
    )
    levels = tuple(
        Level(w, h, float(d))
        for (w, h), d in zip(slide.level_dimensions, slide.level_downsamples, strict=True)
    )
    return SlideFacts(
        path=str(path),
        slide_id=path.stem,
        width=width,
        height=height,
        bounds=_bounds(properties, width, height),
        levels=levels,
        mpp=mpp.mpp,
        mpp_source=mpp.source,
        mpp_problem=mpp.problem,
        objective_power=number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
        compression=compression,
        reader=reader,
        reader_reason=reason,
        warnings=mpp.warnings,
    )


def _usable_mpp(x: float | None, y: float | None) -> tuple[float | None, str | None]:
    """The mpp in the metadata, or None with the reason why it cannot be used."""
    if x is None or y is None:
        return None, None
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and low <= y <= high):
        return (
            None,
            f"its metadata says {x:.6g} x {y:.6g} microns per pixel, which no scanner makes",
        )
    if abs(x / y - 1) > _MAX_ANISOTROPY:
        return None, f"its pixels are not square ({x:.4g} x {y:.4g} microns)"
    return (x + y) / 2, None


def _bounds(properties: Mapping[str, str], width: int, height: int) -> tuple[int, int, int, int]:
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    values = [number(properties.get(name)) for name in names]
    if any(value is None for value in values):
        return 0, 0, width, height
    x, y, w, h = (int(value) for value in values if value is not None)
    left, top, right, bottom = max(0, x), max(0, y), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return 0, 0, width, height
    return left, top, right - left, bottom - top


def number(text: str | None) -> float | None:
    """The finite number that a property holds, or None."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


__all__ = ["MppFacts", "OpenSlideLike", "mpp_facts", "number", "slide_facts"]
