"""Where things lie on a generated slide: tissue outline, glands, and the sites of abnormal cells.

Coordinates are level-0 pixels ``(x, y)``. Every slide, whatever its class, holds pairs of a solid
gland and a solid nest in the stroma. The two have one radius, equal areas and equal room, so the
classes differ only in which of the two holds abnormal cells and which the same number of normal
cells: colours, areas and counts are those of the other class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.synthetic.textures import smooth_noise
from cmamil_sdk.wording import counted

GRID_PX = 16
"""Edge of a cell of the coarse tissue mask."""

ANGLES = np.linspace(0.0, 2 * np.pi, 72, endpoint=False)
"""Directions at which outlines store their radius."""

DISC_RADIUS_PX = (70.0, 135.0)
SITE_RADIUS_PX = (115.0, 170.0)
WALL_PX = (24.0, 32.0)
ABNORMAL_SPACING_PX = 26.0
NORMAL_SPACING_PX = 17.0
_SITE_FILL = 0.75
_CLEARANCE_PX = 20.0
_NEST_ROUGHNESS = 0.12
_SLOT_SHARE = 0.15
_DISC_TRIES = 4000
_SITE_TRIES = 400
_LAYOUT_TRIES = 20
_TISSUE_MARGIN_PX = 24.0
_DISC_GAP = (1.16, 14.0)

Outline = NDArray[np.float64]
"""Radii ``[72]`` in pixels at the directions of :data:`ANGLES`."""


@dataclass(frozen=True)
class Filling:
    """What one place can hold: offsets ``[n, 2]`` of cells from its centre, in pixels.

    Either ``abnormal`` cells in the middle with normal cells ``around`` them, or normal cells
    everywhere (``plain``).
    """

    abnormal: NDArray[np.float64]
    around: NDArray[np.float64]
    plain: NDArray[np.float64]


@dataclass(frozen=True)
class LesionSite:
    """A solid gland and a solid nest of stroma with equal areas and equal numbers of cells."""

    gland: Outline
    lumen: Outline
    nest: Outline
    in_gland: Filling
    in_nest: Filling


@dataclass(frozen=True)
class Layout:
    """Tissue height field ``[H / 16, W / 16]``, above 0 in tissue, and where the discs lie.

    ``site_glands`` and ``site_nests`` ``[n, 2]`` are centres, one row per lesion site; ``glands``
    and ``slots`` ``[m, 3]`` are the centres and radii of the others.
    """

    tissue_height: NDArray[np.float32]
    site_glands: NDArray[np.float64]
    site_nests: NDArray[np.float64]
    glands: NDArray[np.float64]
    slots: NDArray[np.float64]


def draw_outline(rng: np.random.Generator, radius_px: float, roughness: float) -> Outline:
    """A closed, wavy outline with the area of a circle of ``radius_px``."""
    wave = np.ones_like(ANGLES)
    for order in range(2, 6):
        weight = rng.normal(0.0, roughness / np.sqrt(order))
        wave += weight * np.cos(order * ANGLES + rng.uniform(0, 2 * np.pi))
    wave = np.clip(wave, 0.5, 1.6)
    return np.asarray(radius_px * wave / np.sqrt(np.mean(wave**2)))


def draw_gland(rng: np.random.Generator, radius_px: float) -> tuple[Outline, Outline]:
    """Outer outline and lumen of a gland."""
    outer = draw_outline(rng, radius_px, 0.05)
    wall = rng.uniform(*WALL_PX)
    return outer, np.maximum(outer - draw_outline(rng, wall, 0.10), 12.0)


def hexagonal_points(
    rng: np.random.Generator, outline: Outline, spacing_px: float, margin_px: float
) -> NDArray[np.float64]:
    """Jittered hexagonal grid ``[n, 2]`` of offsets that lie ``margin_px`` inside ``outline``."""
    reach = float(outline.max()) + spacing_px
    rows = np.arange(-reach, reach, spacing_px * np.sqrt(0.75))
    columns = np.arange(-reach, reach, spacing_px)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + (np.arange(rows.size)[:, None] % 2) * spacing_px / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.uniform(-0.5, 0.5, 2) * spacing_px
    points += rng.uniform(-0.2, 0.2, points.shape) * spacing_px
    distance = np.hypot(points[:, 0], points[:, 1])
    angle = np.arctan2(points[:, 1], points[:, 0])
    edge = np.interp(angle, ANGLES, outline, period=2 * np.pi)
    return np.asarray(points[distance < edge - margin_px])


def draw_sites(rng: np.random.Generator, cells: int) -> list[LesionSite]:
    """As many lesion sites as ``cells`` abnormal cells need, sharing the cells evenly."""
    shapes: list[tuple[Outline, Outline, Outline]] = []
    grids: list[list[NDArray[np.float64]]] = []
    room: list[int] = []
    while sum(room) < cells:
        gland, lumen = draw_gland(rng, rng.uniform(*SITE_RADIUS_PX))
        nest = draw_outline(rng, float(np.sqrt(np.mean(lumen**2))), _NEST_ROUGHNESS)
        shapes.append((gland, lumen, nest))
        pair = [hexagonal_points(rng, edge, ABNORMAL_SPACING_PX, 14.0) for edge in (lumen, nest)]
        grids.append(pair)
        room.append(int(_SITE_FILL * min(len(points) for points in pair)))
    sites = []
    for shape, pair, count in zip(shapes, grids, _shares(np.array(room), cells), strict=True):
        clusters = [_cluster(rng, points, int(count)) for points in pair]
        sites.append(LesionSite(*shape, *_fill_pair(rng, shape[1:], clusters)))
    return sites


def _cluster(
    rng: np.random.Generator, points: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """The ``count`` points nearest to a point near the middle, with a ragged edge."""
    offset = points - rng.normal(0.0, 12.0, 2)
    distance = np.hypot(offset[:, 0], offset[:, 1]) + rng.normal(0.0, 14.0, len(points))
    return points[np.argsort(distance, kind="stable")[:count]]


def _fill_pair(
    rng: np.random.Generator,
    outlines: tuple[Outline, ...],
    clusters: list[NDArray[np.float64]],
) -> tuple[Filling, Filling]:
    """Fill lumen and nest with equally many normal cells, with and without the clusters."""
    plain = [hexagonal_points(rng, outline, NORMAL_SPACING_PX, 7.0) for outline in outlines]
    around = [
        points[(np.hypot(*(points[:, None] - cluster).T) > _CLEARANCE_PX).all(axis=0)]
        for points, cluster in zip(plain, clusters, strict=True)
    ]
    plain_count = min(len(points) for points in plain)
    around_count = min(len(points) for points in around)
    in_gland, in_nest = (
        Filling(
            cluster,
            rng.permutation(near)[:around_count],
            rng.permutation(all_over)[:plain_count],
        )
        for cluster, near, all_over in zip(clusters, around, plain, strict=True)
    )
    return in_gland, in_nest


def draw_layout(
    rng: np.random.Generator, height_px: int, width_px: int, sites: list[LesionSite]
) -> Layout:
    """Tissue outline and discs by rejection, the lesion sites first so that all of them fit.

    Raises:
        FieldInvalid: the slide is too small for its abnormal cells.
    """
    reach = np.repeat([max(site.gland.max(), site.nest.max()) for site in sites], 2)
    for _ in range(_LAYOUT_TRIES):
        tissue = _draw_tissue(rng, height_px, width_px)
        placed = _place_required(rng, tissue, reach)
        if placed is None:
            continue
        rest = _place_more(rng, tissue, placed)
        is_slot = rng.uniform(size=len(rest)) < _SLOT_SHARE
        return Layout(tissue, placed[0::2, :2], placed[1::2, :2], rest[~is_slot], rest[is_slot])
    raise FieldInvalid(
        f"a slide of {width_px} x {height_px} px has no room for {counted(len(sites), 'lesion site')}; "
        "plan a larger slide or fewer abnormal cells"
    )


def _shares(capacities: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Split ``total`` in proportion to ``capacities``, never above any of them."""
    exact = capacities * (total / max(int(capacities.sum()), 1))
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return np.asarray(counts)


def _draw_tissue(rng: np.random.Generator, height_px: int, width_px: int) -> NDArray[np.float32]:
    """Height field on the coarse grid; tissue is where it is positive."""
    rows, columns = -(-height_px // GRID_PX), -(-width_px // GRID_PX)
    a, b = rng.uniform(0.95, 1.15, 2)
    x = np.linspace(-1, 1, columns)
    y = np.linspace(-1, 1, rows)[:, None]
    noise = smooth_noise(rng, rows, columns, 20)
    field = 1 - (a * x) ** 2 - (b * y) ** 2 + 0.14 * noise - 0.06
    return np.asarray(field, np.float32)


def _place_required(
    rng: np.random.Generator, tissue: NDArray[np.float32], radii: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Discs ``[n, 3]`` of all ``radii`` in their order, or None if one finds no place."""
    placed = np.empty((0, 3))
    for radius in radii:
        spots = _spots(rng, tissue, np.full(_SITE_TRIES, radius))
        free = _apart(spots[:, None], placed).all(axis=1)
        if not free.any():
            return None
        placed = np.vstack([placed, spots[free][:1]])
    return placed


def _place_more(
    rng: np.random.Generator, tissue: NDArray[np.float32], placed: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Further discs ``[n, 3]`` by one try each, clear of ``placed`` and of each other."""
    spots = _spots(rng, tissue, rng.uniform(*DISC_RADIUS_PX, _DISC_TRIES))
    spots = spots[_apart(spots[:, None], placed).all(axis=1)]
    more = np.empty((0, 3))
    while len(spots):
        more = np.vstack([more, spots[:1]])
        spots = spots[1:][_apart(spots[1:], spots[0])]
    return more


def _apart(discs: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether discs ``[..., 3]`` keep their distance from others, broadcast over leading axes."""
    gap = np.hypot(discs[..., 0] - others[..., 0], discs[..., 1] - others[..., 1])
    return np.asarray(gap > _DISC_GAP[0] * (discs[..., 2] + others[..., 2]) + _DISC_GAP[1])


def _spots(
    rng: np.random.Generator, tissue: NDArray[np.float32], radii: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A random disc ``[n, 3]`` for each of ``radii``, without those that leave the tissue."""
    rows, columns = tissue.shape
    centres = rng.uniform(0, GRID_PX, (len(radii), 2)) * (columns, rows)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    reach = radii[:, None] + _TISSUE_MARGIN_PX
    x = np.floor((centres[:, :1] + reach * np.cos(turn)) / GRID_PX).astype(np.int64)
    y = np.floor((centres[:, 1:] + reach * np.sin(turn)) / GRID_PX).astype(np.int64)
    on_slide = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
    found = tissue[np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)] > 0
    inside = (on_slide & found).all(axis=1)
    return np.asarray(np.column_stack([centres, radii])[inside])
