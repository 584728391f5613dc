"""Where CMA-MIL's tiles lie on a slide, by microns per pixel.

As published, the magnification was reached by halving from a nominal objective power, cut to a whole
power of two. Here a tile of 20x is 224 pixels of 0.5 microns wherever the slide says its scale; on a
slide of 20x or 40x the grids are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import FieldInvalid, MppUnknown, MppUnusable
from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.patches.manifest import PatchRecipe
from cmamil_sdk.slides.base import SlideFacts, SlideReader
from cmamil_sdk.tiling.geometry import ReadGeometry, read_geometry
from cmamil_sdk.tiling.plan import TileBatch
from cmamil_sdk.tiling.recipe import Scale, TilingRecipe

UInt8 = npt.NDArray[np.uint8]

MPP_TIMES_POWER = 10.0
"""Microns per pixel of level 0 times the objective's power: 0.5 at 20x, 0.25 at 40x."""
_MAX_DISAGREEMENT = math.sqrt(2)
_NOMINAL_TOLERANCE = 0.02
_ONE_TILE = np.zeros(1, np.int64)


@dataclass(frozen=True)
class PatchGrid:
    """The tiles of one magnification: picklable.

    Attributes:
        recipe: size, overlap and magnification.
        geometry: how one image is read: its tile is the whole image, overlap included.
        step_level0: distance of neighbouring tiles, level-0 pixels.
        columns, rows: tiles along x and y, as many as touch the slide's bounds.
    """

    recipe: PatchRecipe
    geometry: ReadGeometry
    step_level0: float
    columns: int
    rows: int

    def __len__(self) -> int:
        """Number of tiles."""
        return self.columns * self.rows

    def addresses(self) -> Iterator[tuple[int, int]]:
        """``(column, row)`` of every tile, row by row."""
        return ((column, row) for row in range(self.rows) for column in range(self.columns))

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Top left ``(x, y)`` of an image, level-0 pixels; negative where overlap reaches outside."""
        margin = self.step_level0 * self.recipe.overlap_px / self.recipe.tile_px
        x, y = (
            math.floor(origin + index * self.step_level0 - margin + 0.5)
            for origin, index in zip(self.geometry.origin, (column, row), strict=True)
        )
        return x, y

    def read(self, reader: SlideReader, column: int, row: int) -> UInt8 | None:
        """The image ``[px, px, 3]``, white outside the bounds; None if it cannot be decoded."""
        geometry = replace(self.geometry, origin=self.corner(column, row))
        batch = TileBatch(
            geometry=geometry,
            blocks=np.zeros((1, 2), np.int64),
            tile_block=_ONE_TILE,
            tile_scale=_ONE_TILE,
            tile_index=np.zeros((1, 2), np.int64),
            plan_row=_ONE_TILE,
        )
        tiles = read_tiles(reader, batch)
        pixels: UInt8 = tiles.pixels[0]
        return pixels if tiles.ok[0] else None

    def inside(self, image: UInt8, column: int, row: int) -> UInt8:
        """The part of an image that lies inside the slide's bounds."""
        px_per_level0 = self.recipe.image_px / self.geometry.tile_size_level0
        (left, right), (top, bottom) = (
            [max(0, math.floor((bound - start) * px_per_level0 + 0.5)) for bound in bounds]
            for start, *bounds in zip(
                self.corner(column, row),
                self.geometry.origin,
                self.geometry.bounds_end,
                strict=True,
            )
        )
        return image[top:bottom, left:right]


def magnifications(base: float, halvings: list[int]) -> tuple[Scale, ...]:
    """Scales at ``base / 2**m``, coarse to fine: 20 and 0, 1, 2 are 5x, 10x and 20x.

    Raises:
        FieldInvalid: a halving is named twice, or makes tiles of millimetres a pixel.
    """
    if len(set(halvings)) != len(halvings):
        raise FieldInvalid("--magnifications names one twice; name each once.")
    powers = sorted(base / 2**m for m in halvings)
    try:
        return tuple(Scale(name=f"{p:g}x", mpp=MPP_TIMES_POWER / p) for p in powers)
    except ValueError as problem:
        raise FieldInvalid(
            f"--base-mag {base:g} halved {max(halvings)} times is {powers[0]:g}x, which shows nothing; "
            "name fewer --magnifications."
        ) from problem


def scale_of_slide(facts: SlideFacts, objective: float | None) -> tuple[float, str]:
    """Microns per pixel of level 0, and where they come from: metadata, override or objective.

    Args:
        facts: of the slide.
        objective: power to assume where the slide names neither its mpp nor its objective.

    Raises:
        MppUnknown: the slide does not say, and no ``objective`` was given.
        MppUnusable: what it says is nonsense, or contradicts itself.
    """
    power = facts.objective_power
    if facts.mpp is not None:
        if facts.mpp_source == "metadata" and power:
            _check_agreement(facts, facts.mpp, power)
        return facts.mpp, facts.mpp_source
    if facts.mpp_problem:
        facts.require_mpp()
    if not (power or objective):
        raise MppUnknown(
            f"{facts.path} names neither its microns per pixel nor its objective; give the objective "
            "with --objective (20 or 40, say), or the microns with --mpp."
        )
    return MPP_TIMES_POWER / (power or objective or 0), "objective"


def patch_grids(facts: SlideFacts, recipes: tuple[PatchRecipe, ...]) -> tuple[PatchGrid, ...]:
    """The grid of each recipe; all share one origin and nest where their magnifications do.

    Args:
        facts: of the slide, with its mpp.
        recipes: magnifications of one run, coarse to fine.

    Raises:
        MppUnusable: the slide is coarser than a magnification that is wanted.
    """
    mpp = _nominal(facts.require_mpp())
    return tuple(_grid(facts, recipe, mpp) for recipe in recipes)


def _nominal(mpp: float) -> float:
    """The mpp of 20x, 40x and so on where ``mpp`` is near it, so that tiles are whole pixels wide.

    It depends on the slide alone: magnifications that are tiled in several runs have one grid.
    """
    at_20x = MPP_TIMES_POWER / 20
    nominal = at_20x * 2.0 ** round(math.log2(mpp / at_20x))
    return nominal if abs(mpp / nominal - 1) <= _NOMINAL_TOLERANCE else mpp


def _grid(facts: SlideFacts, recipe: PatchRecipe, mpp: float) -> PatchGrid:
    step = recipe.tile_px * recipe.scale.mpp / mpp
    level = read_geometry(facts, TilingRecipe(scales=(recipe.scale,), tile_px=recipe.tile_px))
    geometry = replace(
        level,
        tile_px=recipe.image_px,
        tile_size_level0=step * recipe.image_px / recipe.tile_px,
        columns=1,
        rows=1,
    )
    _, _, width, height = facts.bounds
    # a bit more than a whole number of tiles is a fault of the arithmetic, not another tile
    columns, rows = (math.ceil(extent / step - 1e-9) for extent in (width, height))
    return PatchGrid(recipe, geometry, step, columns, rows)


def _check_agreement(facts: SlideFacts, mpp: float, power: float) -> None:
    ratio = mpp * power / MPP_TIMES_POWER
    if not 1 / _MAX_DISAGREEMENT < ratio < _MAX_DISAGREEMENT:
        raise MppUnusable(
            f"{facts.path} says {mpp:.4g} µm/px and an objective of {power:g}x, which is about "
            f"{MPP_TIMES_POWER / power:.4g} µm/px; say which is true with --mpp."
        )


__all__ = ["PatchGrid", "magnifications", "patch_grids", "scale_of_slide"]
