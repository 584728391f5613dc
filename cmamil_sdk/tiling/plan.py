"""The plan of a slide: every tile that will be read, at every scale, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import NoTissue, TooManyTiles
from cmamil_sdk.slides.base import SlideFacts, SlideReader
from cmamil_sdk.tiling.batches import TileBatch, TileBatches
from cmamil_sdk.tiling.geometry import ReadGeometry, read_geometry
from cmamil_sdk.tiling.recipe import TilingRecipe
from cmamil_sdk.tiling.sampling import sample_tiles
from cmamil_sdk.tiling.tissue import TissueMap, find_tissue

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
BoolMask = npt.NDArray[np.bool_]

MIN_INSIDE = 0.5
"""A tile is kept only if at least this share of it lies within the slide's bounds."""

DEFAULT_BATCH_TILES = 32
"""Two calls of an engine on a CPU."""


@dataclass(frozen=True)
class PlannedScale:
    """The kept tiles of one scale, in row-major order of the grid.

    Attributes:
        name, mpp: the scale.
        size_level0: edge of a tile, level-0 pixels.
        index: ``[N, 2]`` int64 ``(column, row)`` in the grid.
        coords: ``[N, 2]`` int64 ``(x, y)`` of the top left corner, level-0 pixels.
        parent: ``[N]`` int64 row of the enclosing tile at the next coarser scale, -1 at the coarsest.
        tissue: ``[N]`` float32 tissue share.
    """

    name: str
    mpp: float
    size_level0: float
    index: Int64
    coords: Int64
    parent: Int64
    tissue: Float32


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one slide, coarse to fine; the same slide and recipe give the same plan.

    ``tissue_share`` is the share of the slide's bounds that is tissue.
    """

    facts: SlideFacts
    recipe: TilingRecipe
    geometry: ReadGeometry
    tissue_share: float
    scales: tuple[PlannedScale, ...]

    def counts(self) -> dict[str, int]:
        """Number of tiles per scale."""
        return {scale.name: len(scale.index) for scale in self.scales}

    def total_tiles(self) -> int:
        """Number of tiles over all scales."""
        return sum(self.counts().values())

    def batches(self, batch_tiles: int = DEFAULT_BATCH_TILES) -> TileBatches:
        """The plan cut into batches of whole blocks with about ``batch_tiles`` tiles each."""
        return TileBatches(self.geometry, [scale.index for scale in self.scales], batch_tiles)


def make_plan(
    reader: SlideReader,
    recipe: TilingRecipe,
    *,
    mask: Path | None = None,
    max_tiles: int | None = None,
    allow_empty: bool = False,
) -> TilePlan:
    """Find the tissue and list the tiles to read.

    Args:
        reader: the open slide.
        recipe: scales, tissue, and how many tiles.
        mask: the slide's mask file, for the tissue method ``mask``.
        max_tiles: most tiles, over all scales.
        allow_empty: a slide without tissue has a plan without tiles.

    Raises:
        MppUnknown, MppUnusable: the scales cannot be laid on this slide.
        NoTissue: no tile of the finest scale is kept.
        TooManyTiles: more tiles than ``max_tiles``.
        SlideCorrupt: the overview cannot be decoded.
        FieldInvalid, TissueMaskInvalid: as :func:`~cmamil_sdk.tiling.tissue.find_tissue`.
    """
    geometry = read_geometry(reader.facts, recipe)
    plan = plan_tiles(
        reader.facts, recipe, geometry, find_tissue(reader, recipe, geometry, mask=mask)
    )
    total = plan.total_tiles()
    if total == 0 and not allow_empty:
        raise NoTissue(no_tissue(plan))
    if max_tiles is not None:
        check_tiles(reader.facts.path, total, max_tiles)
    return plan


def check_tiles(slide: str, total: int, max_tiles: int) -> None:
    """Refuse a slide of too many tiles.

    Raises:
        TooManyTiles: more than ``max_tiles``.
    """
    if total > max_tiles:
        raise TooManyTiles(
            f"{slide} has {total} tiles, the limit is {max_tiles}; "
            "raise the limit, or cut the slide into smaller ones."
        )


def no_tissue(plan: TilePlan) -> str:
    """The sentence about a slide whose plan is empty."""
    finest = plan.recipe.finest.name
    in_x, in_y = plan.geometry.inside_share(len(plan.geometry.ratios) - 1)
    if in_x.max() * in_y.max() < MIN_INSIDE:
        edge_px = plan.geometry.tile_size_level0
        return (
            f"{plan.facts.path}: {plan.facts.bounds[2]} x {plan.facts.bounds[3]} px are less than half "
            f"a {finest} tile of {edge_px:g} x {edge_px:g} px; leave it out, or use finer scales."
        )
    return (
        f"{plan.facts.path}: no {finest} tile is tissue to "
        f"{plan.recipe.tissue.min_share:.0%}; look at it with `cmamil inspect --thumbnail`."
    )


def plan_tiles(
    facts: SlideFacts, recipe: TilingRecipe, geometry: ReadGeometry, found: TissueMap
) -> TilePlan:
    """List the tiles of a slide whose tissue is known.

    A tile is kept if its tissue share reaches ``recipe.tissue.min_share`` and at least half of it
    lies within the bounds; the ancestors of a kept tile are kept. If no tile of the finest scale is
    kept, none is. A recipe with a ``sample`` takes some of these.
    """
    cells = found.grid.per_tile
    shares = [_block_means(found.tissue, cells * ratio) for ratio in geometry.ratios]
    kept = _keep(shares, geometry, recipe.tissue.min_share)
    if recipe.sample is not None:
        kept = sample_tiles(kept, recipe.sample)
    return TilePlan(
        facts=facts,
        recipe=recipe,
        geometry=geometry,
        tissue_share=_tissue_share(found, geometry),
        scales=_planned_scales(recipe, geometry, shares, kept),
    )


def _block_means(mask: BoolMask, edge: int) -> Float32:
    rows, columns = mask.shape[0] // edge, mask.shape[1] // edge
    blocks = mask.reshape(rows, edge, columns, edge)
    means: Float32 = blocks.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)
    return means


def _keep(shares: list[Float32], geometry: ReadGeometry, min_share: float) -> list[BoolMask]:
    kept: list[BoolMask] = []
    for number, share in enumerate(shares):
        in_x, in_y = geometry.inside_share(number)
        kept.append((share >= min_share) & (in_y[:, None] * in_x[None, :] >= MIN_INSIDE))
    if not kept[-1].any():
        return [np.zeros_like(mask) for mask in kept]
    for number in range(len(kept) - 2, -1, -1):
        step = geometry.ratios[number] // geometry.ratios[number + 1]
        rows, columns = kept[number].shape
        kept[number] |= kept[number + 1].reshape(rows, step, columns, step).any(axis=(1, 3))
    return kept


def _planned_scales(
    recipe: TilingRecipe, geometry: ReadGeometry, shares: list[Float32], kept: list[BoolMask]
) -> tuple[PlannedScale, ...]:
    planned = []
    rows_above: Int64 | None = None
    for number, scale in enumerate(recipe.scales):
        row, column = np.nonzero(kept[number])
        index = np.stack([column, row], axis=1).astype(np.int64)
        size = geometry.scale_size_level0(number)
        parent = np.full(len(index), -1, dtype=np.int64)
        if rows_above is not None:
            step = geometry.ratios[number - 1] // geometry.ratios[number]
            parent = rows_above[row // step, column // step]
        planned.append(
            PlannedScale(
                name=scale.name,
                mpp=scale.mpp,
                size_level0=size,
                index=index,
                coords=np.floor(np.array(geometry.origin) + index * size + 0.5).astype(np.int64),
                parent=parent,
                tissue=shares[number][kept[number]],
            )
        )
        rows_above = np.full(kept[number].shape, -1, dtype=np.int64)
        rows_above[kept[number]] = np.arange(len(index))
    return tuple(planned)


def _tissue_share(found: TissueMap, geometry: ReadGeometry) -> float:
    cell = found.grid.size_level0
    width, height = (
        end - start for end, start in zip(geometry.bounds_end, geometry.origin, strict=True)
    )
    return float(min(1.0, found.tissue.sum() * cell * cell / (width * height)))


__all__ = [
    "DEFAULT_BATCH_TILES",
    "PlannedScale",
    "TileBatch",
    "TilePlan",
    "check_tiles",
    "make_plan",
    "no_tissue",
    "plan_tiles",
]
