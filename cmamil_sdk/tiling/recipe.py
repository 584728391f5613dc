"""What is read from a slide: the scales, the tile size, and how tissue is found.

The recipe fixes the pixels a model sees. It travels with features, checkpoints and bundles, and two
artefacts are only used together when their recipes are equal.

Recipes outlive versions of this package: a field that came later has a default under which everything
is as it was before, and is written only where it has another value. So an old recipe reads, prints and
hashes as ever.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from cmamil_sdk.errors import ScaleMismatch
from cmamil_sdk.tiling.edge_density import EDGE_DENSITY_THRESHOLD

TILE_PX = (16, 4096)
"""Smallest and largest edge of a tile."""

_RATIO_TOLERANCE = 1e-6
MAX_RATIO = 16
"""The coarsest scale may be this much coarser than the finest: a tile of it is read as one block."""


class Scale(BaseModel):
    """One magnification: a name such as ``"20x"`` and its microns per pixel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=32)
    mpp: float = Field(gt=0.0, le=1000.0, allow_inf_nan=False)


class _Recipe(BaseModel):
    """A part of a recipe; fields in ``_later`` are written only where they are not the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    _later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        for name in self._later:
            if getattr(self, name) == fields[name].default:
                document.pop(name, None)
        return document


class TissueRecipe(_Recipe):
    """How tissue is told from background, and how much of a tile must be tissue."""

    _later = frozenset(
        ("edge_threshold", "edge_area", "pens", "pen_min_um2", "fill_holes_um2", "drop_specks_um2")
    )

    method: Literal["otsu", "edge-density", "mask", "none"] = Field(
        "otsu",
        description="otsu: saturation (HSV) above Otsu's threshold; edge-density: as CMA-MIL's "
        "published tiler; mask: a picture for each slide says it; none: all is tissue",
    )
    min_value: float = Field(
        0.15,
        ge=0.0,
        le=1.0,
        description="otsu: what is darker (HSV value) is no tissue but a frame, a fold or a pen",
    )
    min_share: float = Field(0.25, ge=0.0, le=1.0, description="smallest tissue share of a tile")
    cell_um: float = Field(8.0, gt=0.0, description="edge of one mask cell, micrometres, about")
    edge_threshold: float = Field(
        EDGE_DENSITY_THRESHOLD,
        ge=0.0,
        le=255.0,
        description="edge-density: a tile of the finest scale is tissue if its score is above",
    )
    edge_area: Literal["tile", "inside"] = Field(
        "tile",
        description="edge-density: the area that a score is divided by at the slide's edge; tile: "
        "a whole tile's, as published; inside: that of the part inside the slide",
    )
    pens: Literal["keep", "exclude"] = Field(
        "keep", description="exclude: marks of pens on the glass are no tissue (H&E only)"
    )
    pen_min_um2: float = Field(
        50_000.0,
        ge=0.0,
        allow_inf_nan=False,
        description="what has the colour of ink and is smaller is no mark, square micrometres",
    )
    fill_holes_um2: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="holes in the tissue up to this area are tissue, square micrometres",
    )
    drop_specks_um2: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="pieces of tissue smaller than this are none, square micrometres",
    )


class TileSample(BaseModel):
    """A cap on the tiles of the finest scale; which ones are taken is drawn by ``seed``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tiles: int = Field(ge=1, description="most tiles of the finest scale")
    seed: int = Field(0, ge=0, lt=2**32)


class TilingRecipe(_Recipe):
    """The full description of which pixels are read; equal recipes give equal tiles.

    ``scales`` are ordered from coarse to fine; each one's mpp is a whole multiple of the next's.
    A stored level whose mpp is within ``mpp_tolerance`` (relative) of a whole fraction of the wanted
    mpp is used without fractional resampling.

    ``scale_source`` says where the pixels of a coarser scale come from: ``finest``, from those of the
    finest scale, whatever else the slide stores; ``stored``, from the coarsest stored level that is no
    coarser than the scale. Both are area averages, and differ only on slides that store such levels.

    Raises:
        ScaleMismatch: scales are empty, double, out of order, or do not nest.
    """

    _later = frozenset(("sample",))

    scales: tuple[Scale, ...]
    tile_px: int = Field(224, ge=TILE_PX[0], le=TILE_PX[1])
    scale_source: Literal["finest", "stored"] = "finest"
    mpp_tolerance: float = Field(0.02, ge=0.0, le=0.1)
    tissue: TissueRecipe = TissueRecipe()
    sample: TileSample | None = Field(None, description="None: all tiles with enough tissue")

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
                    f"Scale {coarse.name} ({coarse.mpp:.4g} µm/px) is not a whole multiple of "
                    f"{fine.name} ({fine.mpp:.4g} µm/px); order scales from coarse to fine and "
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


__all__ = ["Scale", "TileSample", "TilingRecipe", "TissueRecipe", "parse_scales"]
