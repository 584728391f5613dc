"""Where the nested grid lies on a slide, and which stored level serves it.

All scales share one origin, the corner of the slide's bounds. The unit of reading is a *block*: one
tile of the coarsest scale, with all the finer tiles inside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import MppUnusable
from cmamil_sdk.slides.base import SlideFacts
from cmamil_sdk.tiling.recipe import TilingRecipe

Float64 = npt.NDArray[np.float64]

_WHOLE_TOLERANCE_PX = 1e-6


@dataclass(frozen=True)
class OwnLevel:
    """The stored level that serves a coarser scale, where it is not that of the finest.

    Attributes:
        level: its number.
        downsample: level-0 pixels per pixel of it.
        tile_px: pixels of it that are read for a tile; whole wherever that is near enough.
    """

    level: int
    downsample: float
    tile_px: float


@dataclass(frozen=True)
class ReadGeometry:
    """How blocks of one slide are read; small, picklable, the same for every batch of a plan.

    Attributes:
        tile_px: edge of a tile, pixels at its own scale.
        names: scale names, coarse to fine.
        ratios: finest tiles along the edge of one tile, per scale.
        level: the stored level that serves the finest scale.
        downsample: level-0 pixels per pixel of that level.
        own_levels: per scale the level that serves it, None where its pixels are averages of the
            finest scale's.
        origin: ``(x, y)`` of the grid, level-0 pixels.
        bounds_end: ``(x, y)`` just past the slide's bounds, level-0 pixels.
        tile_size_level0: edge of a finest tile, level-0 pixels.
        columns, rows: blocks along x and y.
    """

    tile_px: int
    names: tuple[str, ...]
    ratios: tuple[int, ...]
    level: int
    downsample: float
    own_levels: tuple[OwnLevel | None, ...]
    origin: tuple[int, int]
    bounds_end: tuple[int, int]
    tile_size_level0: float
    columns: int
    rows: int

    @property
    def block_ratio(self) -> int:
        """Finest tiles along the edge of a block."""
        return self.ratios[0]

    @property
    def block_px(self) -> int:
        """Edge of a block, pixels at the finest scale."""
        return self.tile_px * self.block_ratio

    @property
    def tile_size_level(self) -> float:
        """Edge of a finest tile in pixels of the level that is read; whole wherever it should be."""
        size = self.tile_size_level0 / self.downsample
        # Multiplying by the downsample and dividing again may miss a whole number by one bit.
        return float(round(size)) if abs(size - round(size)) < _WHOLE_TOLERANCE_PX else size

    def levels(self) -> dict[str, int]:
        """Per scale the stored level that its pixels come from."""
        numbers = (self.level if own is None else own.level for own in self.own_levels)
        return dict(zip(self.names, numbers, strict=True))

    def scale_size_level0(self, scale: int) -> float:
        """Edge of a tile of scale number ``scale``, level-0 pixels."""
        return self.tile_size_level0 * self.ratios[scale]

    def inside_share(self, scale: int) -> tuple[Float64, Float64]:
        """Share of each column ``[columns]`` and row ``[rows]`` of a scale that lies in the bounds."""
        per_block = self.block_ratio // self.ratios[scale]
        size = self.scale_size_level0(scale)
        shares = []
        for axis, blocks in enumerate((self.columns, self.rows)):
            starts = np.arange(blocks * per_block) * size
            extent = self.bounds_end[axis] - self.origin[axis]
            shares.append(np.clip((extent - starts) / size, 0.0, 1.0))
        return shares[0], shares[1]

    def tiles_in_bounds(self) -> int:
        """Number of tiles, over all scales, that lie within the bounds, wholly or in part."""
        shares = map(self.inside_share, range(len(self.ratios)))
        return sum(int((in_x > 0).sum() * (in_y > 0).sum()) for in_x, in_y in shares)


def read_geometry(facts: SlideFacts, recipe: TilingRecipe) -> ReadGeometry:
    """Lay the recipe's grid on a slide and choose the level to read.

    The finest scale is read from the coarsest stored level that is no coarser than it. Where that
    level's mpp is a whole fraction of the scale's within ``recipe.mpp_tolerance``, tiles are a whole
    number of its pixels wide, so nothing is resampled by a fraction. That fixes the grid; a coarser
    scale with a level of its own is read from there at the places of this grid.

    Raises:
        MppUnknown: the slide does not say its mpp.
        MppUnusable: its mpp is nonsense, or coarser than the finest scale.
    """
    mpp, finest = facts.require_mpp(), recipe.finest
    if mpp > finest.mpp * (1 + recipe.mpp_tolerance):
        raise MppUnusable(
            f"{facts.path} has {mpp:.4g} µm/px at its finest, scale {finest.name} needs "
            f"{finest.mpp:.4g}; use a slide scanned at a higher magnification, a model of coarser "
            "scales, or correct the value with --mpp."
        )
    level = _nearest_level(facts, mpp, finest.mpp, recipe.mpp_tolerance)
    downsample = facts.levels[level].downsample
    ratio = _whole_if_near(finest.mpp / (mpp * downsample), recipe.mpp_tolerance)
    tile_size = recipe.tile_px * ratio * downsample
    ratios = recipe.ratios()
    x, y, width, height = facts.bounds
    return ReadGeometry(
        tile_px=recipe.tile_px,
        names=recipe.names,
        ratios=ratios,
        level=level,
        downsample=downsample,
        own_levels=tuple(
            _own_level(facts, recipe, mpp, scale.mpp, tile_size * times, level)
            for scale, times in zip(recipe.scales, ratios, strict=True)
        ),
        origin=(x, y),
        bounds_end=(x + width, y + height),
        tile_size_level0=tile_size,
        columns=math.ceil(width / (tile_size * ratios[0])),
        rows=math.ceil(height / (tile_size * ratios[0])),
    )


def _nearest_level(facts: SlideFacts, mpp: float, wanted_mpp: float, tolerance: float) -> int:
    """The coarsest stored level that is no coarser than ``wanted_mpp``, else the finest."""
    return max(
        index
        for index, stored in enumerate(facts.levels)
        if index == 0 or mpp * stored.downsample <= wanted_mpp * (1 + tolerance)
    )


def _whole_if_near(ratio: float, tolerance: float) -> float:
    whole = max(1, round(ratio))
    return float(whole) if abs(ratio / whole - 1) <= tolerance else ratio


def _own_level(
    facts: SlideFacts,
    recipe: TilingRecipe,
    mpp: float,
    scale_mpp: float,
    size_level0: float,
    finest_level: int,
) -> OwnLevel | None:
    """The level for a scale of ``scale_mpp`` whose tiles are ``size_level0`` wide, as the recipe says."""
    if recipe.scale_source == "finest":
        return None
    level = _nearest_level(facts, mpp, scale_mpp, recipe.mpp_tolerance)
    if level == finest_level:
        return None  # so a slide of one level gives the same pixels by either source
    downsample = facts.levels[level].downsample
    ratio = _whole_if_near(size_level0 / downsample / recipe.tile_px, recipe.mpp_tolerance)
    return OwnLevel(level, downsample, recipe.tile_px * ratio)


__all__ = ["OwnLevel", "ReadGeometry", "read_geometry"]
