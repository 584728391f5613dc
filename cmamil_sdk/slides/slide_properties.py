"""What a slide's metadata says, by the same rules for every reader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import openslide

from cmamil_sdk.slides.base import PLAUSIBLE_MPP, Level, SlideFacts, mpp_of_objective
from cmamil_sdk.units import MicronsPerPixel

_MAX_ANISOTROPY = 0.02
_OVERRIDE_CONFLICT = 0.05
_OBJECTIVE_CONFLICT = 1.6
"""A camera adapter makes up to this of what an objective suggests."""
_MAX_TAGGED_MPP = 10.0
"""Coarser than 1000 pixels per centimetre, tags hold what printers and screens need, not a scale."""
_MICRONS = {"centimeter": 10_000.0, "inch": 25_400.0}
_NOT_SQUARE = "its pixels are not square"


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


def mpp_facts(
    x: float | None,
    y: float | None,
    *,
    override: float | None,
    objective_power: float | None = None,
) -> MppFacts:
    """Choose between what a file states (microns per pixel along each axis) and what was given.

    An objective is never taken for a scale: it only bears witness against one that was given.
    """
    stated, problem = _usable_mpp(x, y)
    if override is None:
        source = "metadata" if stated else "unknown"
        return MppFacts(None if stated is None else MicronsPerPixel(stated), source, problem, ())
    against = _against_override(override, stated, problem, objective_power)
    warnings = (f"{against}; {override:.4g} was given and is used.",) if against else ()
    return MppFacts(MicronsPerPixel(override), "override", None, warnings)


def _against_override(
    given: float, stated: float | None, problem: str | None, power: float | None
) -> str | None:
    """What in the slide's metadata contradicts the mpp that was given, or None."""
    if stated is not None:
        conflict = abs(given / stated - 1) > _OVERRIDE_CONFLICT
        return f"The slide's metadata says {stated:.4g} µm/px" if conflict else None
    if problem is not None and problem.startswith(_NOT_SQUARE):
        return f"The slide says that {problem}"
    if (
        power
        and not 1 / _OBJECTIVE_CONFLICT <= given / mpp_of_objective(power) <= _OBJECTIVE_CONFLICT
    ):
        suggested = mpp_of_objective(power)
        return f"The slide's objective, {power:g}x, suggests about {suggested:.3g} µm/px"
    return None


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
    power = number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)) or 0.0
    x, y, remark = _stated_mpp(properties)
    mpp = mpp_facts(x, y, override=override_mpp, objective_power=max(power, 0.0))
    levels = tuple(
        Level(w, h, float(d))
        for (w, h), d in zip(slide.level_dimensions, slide.level_downsamples, strict=True)
    )
    usable = _usable_levels(levels)
    bounds = _bounds(properties, width, height)
    warnings = [*mpp.warnings]
    if remark and mpp.source == "metadata":
        warnings.append(remark)
    if len(usable) < len(levels):
        odd = levels[len(usable)]
        warnings.append(
            f"Level {len(usable)}, {odd.width} x {odd.height} pixels, has another shape than the slide; "
            "it and those after it are not read."
        )
    if bounds is None:
        warnings.append("The bounds in the slide's metadata lie outside it; all of it is read.")
    return SlideFacts(
        path=str(path),
        slide_id=path.stem,
        width=width,
        height=height,
        bounds=bounds or (0, 0, width, height),
        levels=usable,
        mpp=mpp.mpp,
        mpp_source=mpp.source,
        mpp_problem=mpp.problem,
        objective_power=power if power > 0 else None,
        vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
        compression=compression,
        reader=reader,
        reader_reason=reason,
        warnings=tuple(warnings),
    )


def _stated_mpp(properties: Mapping[str, str]) -> tuple[float | None, float | None, str | None]:
    """Microns per pixel along x and y, and what is to be said of their origin.

    What the vendor wrote; where that is nothing, the resolution tags of the TIFF, if a microscope can be
    meant by them.
    """
    x = number(properties.get(openslide.PROPERTY_NAME_MPP_X))
    y = number(properties.get(openslide.PROPERTY_NAME_MPP_Y))
    microns = _MICRONS.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit_x = number(properties.get("tiff.XResolution")) or 0.0
    per_unit_y = number(properties.get("tiff.YResolution")) or 0.0
    if x is not None or y is not None or microns is None:
        return x, y, None
    if min(per_unit_x, per_unit_y) < microns / _MAX_TAGGED_MPP:
        return None, None, None
    remark = "Microns per pixel are those of the TIFF's resolution tags."
    return microns / per_unit_x, microns / per_unit_y, remark


def _usable_levels(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """The levels before the first that is not the slide made smaller by its downsample.

    OpenSlide takes the mean of both edges' ratios, and reads a level of another shape out of scale.
    """
    for number_of, level in enumerate(levels):
        edges = ((levels[0].width, level.width), (levels[0].height, level.height))
        if any(abs(whole / level.downsample - part) > _tolerance_px(part) for whole, part in edges):
            return levels[:number_of]
    return levels


def _tolerance_px(edge: int) -> float:
    """What rounding, and scanners that stitch, may make of an edge."""
    return 2 + 0.005 * edge


def _usable_mpp(x: float | None, y: float | None) -> tuple[float | None, str | None]:
    """The mpp in the metadata, or None with the reason why it cannot be used."""
    if x is None and y is None:
        return None, None
    if x is None or y is None:
        axis, value = ("x", x) if y is None else ("y", y)
        return (
            None,
            f"its metadata says {value:.4g} microns per pixel along {axis} and nothing else",
        )
    low, high = PLAUSIBLE_MPP
    if not (low <= x <= high and low <= y <= high):
        return (
            None,
            f"its metadata says {x:.6g} x {y:.6g} microns per pixel, which no scanner makes",
        )
    if abs(x / y - 1) > _MAX_ANISOTROPY:
        return None, f"{_NOT_SQUARE} ({x:.4g} x {y:.4g} microns)"
    return (x + y) / 2, None


def _bounds(
    properties: Mapping[str, str], width: int, height: int
) -> tuple[int, int, int, int] | None:
    """The non-empty region, cut to the slide; None if none of it lies inside."""
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
        return None
    return left, top, right - left, bottom - top


def number(text: str | None) -> float | None:
    """The finite number that a property holds, or None."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


__all__ = ["MppFacts", "OpenSlideLike", "mpp_facts", "number", "slide_facts"]
