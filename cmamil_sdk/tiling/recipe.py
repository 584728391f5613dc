"""What is read from a slide: the scales, the tile size, and how tissue is found.

The recipe fixes the pixels a model sees. It travels with features, checkpoints and bundles, and two
artefacts are only used together when their recipes are equal.
"""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cmamil_sdk.errors import ScaleMismatch

_RATIO_TOLERANCE = 1e-6
MAX_RATIO = 16
"""The coarsest scale may be this much coarser than the finest: a tile of it is read as one block."""


class Scale(BaseModel):
    """One magnification: a name such as ``"20x"`` and its microns per pixel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=32)
    mpp: float = Field(gt=0.0, le=1000.0, allow_inf_nan=False)


class TissueRecipe(BaseModel):
    """How tissue is told from background, and how much of a tile must be tissue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["otsu", "none"] = Field(
        "otsu", description="otsu: saturation (HSV) above Otsu's threshold; none: all is tissue"
    )
    min_value: float = Field(
        0.15,
        ge=0.0,
        le=1.0,
        description="otsu: what is darker (HSV value) is no tissue but a frame, a fold or a pen",
    )
    min_share: float = Field(0.25, ge=0.0, le=1.0, description="smallest tissue share of a tile")
    cell_um: float = Field(8.0, gt=0.0, description="edge of one mask cell, micrometres, about")


class TilingRecipe(BaseModel):
    """The full description of which pixels are read; equal recipes give equal tiles.

    ``scales`` are ordered from coarse to fine; each one's mpp is a whole multiple of the next's.
    A stored level whose mpp is within ``mpp_tolerance`` (relative) of a whole fraction of the wanted
    mpp is used without fractional resampling.

    Raises:
        ScaleMismatch: scales are empty, double, out of order, or do not nest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: tuple[Scale, ...]
    tile_px: int = Field(224, ge=16, le=4096)
    scale_source: Literal["finest"] = "finest"
    mpp_tolerance: float = Field(0.02, ge=0.0, le=0.1)
    tissue: TissueRecipe = TissueRecipe()

    @field_validator("scales")
    @classmethod
    def _nested(cls, scales: tuple[Scale, ...]) -> tuple[Scale, ...]:
        if not scales:
            raise ScaleMismatch("No scale was given; name at least one, for example 20x.")
        if len({scale.name for scale in scales}) != len(scales):
            raise ScaleMismatch(
                f"The scales {_names(scales)} name one scale twice; name each once."
            )
        for coarse, fine in itertools.pairwise(scales):
            ratio = coarse.mpp / fine.mpp
            if ratio < 2 - _RATIO_TOLERANCE or abs(ratio - round(ratio)) > _RATIO_TOLERANCE:
                raise ScaleMismatch(
                    f"Scale {coarse.name} ({coarse.mpp} µm/px) is not a whole multiple of "
                    f"{fine.name} ({fine.mpp} µm/px); order scales from coarse to fine and "
                    "choose mpp values that nest, for example 5x,10x,20x."
                )
        if scales[0].mpp / scales[-1].mpp > MAX_RATIO + _RATIO_TOLERANCE:
            raise ScaleMismatch(
                f"Scale {scales[0].name} is more than {MAX_RATIO} times as coarse as "
                f"{scales[-1].name}; leave out the coarsest scale."
            )
        return scales

    @property
    def finest(self) -> Scale:
        """The scale with the smallest mpp."""
        return self.scales[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Scale names, coarse to fine."""
        return tuple(scale.name for scale in self.scales)

    def ratios(self) -> tuple[int, ...]:
        """How many finest tiles lie along the edge of one tile, per scale (finest: 1)."""
        return tuple(round(scale.mpp / self.finest.mpp) for scale in self.scales)


def parse_scales(text: str) -> tuple[Scale, ...]:
    """Turn ``"5x,10x,20x"`` into scales, coarse to fine; ``Mx`` means ``10 / M`` microns per pixel.

    Raises:
        ScaleMismatch: a name is not a magnification.
    """
    scales = []
    for name in (part.strip() for part in text.split(",")):
        try:
            scales.append(Scale(name=name, mpp=10.0 / _power(name)))
        except (ValueError, ZeroDivisionError) as problem:
            raise ScaleMismatch(
                f"{name!r} in --scales {text!r} is not a magnification; write for example 5x,10x,20x."
            ) from problem
    return tuple(sorted(scales, key=lambda scale: -scale.mpp))


def _power(name: str) -> float:
    if not name.endswith("x"):
        raise ValueError(name)
    return float(name.removesuffix("x"))


def _names(scales: tuple[Scale, ...]) -> str:
    return ",".join(scale.name for scale in scales)


__all__ = ["Scale", "TilingRecipe", "TissueRecipe", "parse_scales"]
