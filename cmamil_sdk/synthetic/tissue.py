"""Draw a slide's tissue as two stain maps, and remember where the abnormal cells went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from cmamil_sdk.synthetic.layout import (
    ANGLES,
    GRID_PX,
    NORMAL_SPACING_PX,
    Filling,
    Layout,
    LesionSite,
    Outline,
    draw_gland,
    draw_layout,
    draw_outline,
    draw_sites,
    hexagonal_points,
)
from cmamil_sdk.synthetic.sprites import Sprite, SpriteBank, sprite_bank, stamp
from cmamil_sdk.synthetic.textures import (
    ORIENTATIONS,
    TextureBank,
    texture_bank,
    texture_index,
)

StainMap = NDArray[np.uint8]

_RING_SPACING_PX = 14.5
_RING_INSET_PX = 9.0
_CLUMP_SPACING_PX = 13.0
_OCCUPANCY_PX = 4


@dataclass(frozen=True)
class Drawing:
    """Stain maps ``[H, W]`` (100 = amount 1) and the truth about them.

    ``abnormal_xy`` ``[n, 2]`` and ``glands`` ``[m, 3]`` (x, y, mean radius) are level-0 pixels.
    """

    haematoxylin: StainMap
    eosin: StainMap
    abnormal_xy: NDArray[np.float64]
    glands: NDArray[np.float64]


def draw_tissue(
    label: str, cells: int, height_px: int, width_px: int, *, seed: int, bank_seed: int
) -> Drawing:
    """Draw the tissue of one slide.

    ``cells`` abnormal cells are drawn if ``label`` is ``in_situ`` (inside glands) or ``invasive``
    (in the stroma); for any other label the same sites are laid out and left without them.

    Raises:
        FieldInvalid: the slide is too small for its abnormal cells.
    """
    geometry = np.random.default_rng([seed, 1])
    sites = draw_sites(geometry, cells)
    layout = draw_layout(geometry, height_px, width_px, sites)
    painter = _Painter(layout, height_px, width_px, seed, bank_seed)
    for site, (x, y) in zip(sites, layout.site_glands, strict=True):
        painter.solid_gland(site, x, y, abnormal=label == "in_situ")
    for site, (x, y) in zip(sites, layout.site_nests, strict=True):
        painter.nest(site, x, y, abnormal=label == "invasive")
    painter.plain_glands(layout.glands)
    painter.clumps(layout.slots)
    painter.stromal_nuclei()
    return painter.finish()


class _Painter:
    """Paints one slide; every step draws from its own random stream, alike in all classes."""

    def __init__(
        self, layout: Layout, height_px: int, width_px: int, seed: int, bank_seed: int
    ) -> None:
        self._rng = np.random.default_rng([seed, 2])
        self._nuclei_rng = np.random.default_rng([seed, 3])
        self._bank: SpriteBank = sprite_bank(bank_seed)
        self._textures: TextureBank = texture_bank(bank_seed)
        self._index = texture_index(self._rng, height_px, width_px)
        self._tissue = _full_size(layout.tissue_height, height_px, width_px)
        packed = np.take(self._textures.stroma, self._index)
        packed *= self._tissue
        self._eosin = packed.astype(np.uint8)
        packed >>= 8
        self._haematoxylin = packed.astype(np.uint8)
        self._occupied = Image.new("L", (width_px // _OCCUPANCY_PX, height_px // _OCCUPANCY_PX))
        self._stroma_px = float(self._tissue.sum())
        self._abnormal: list[tuple[float, float]] = []
        self._glands: list[tuple[float, float, float]] = []

    def solid_gland(self, site: LesionSite, x: float, y: float, *, abnormal: bool) -> None:
        """A gland whose lumen is filled, with abnormal or normal cells in the middle."""
        ground = self._gland(site.gland, site.lumen, x, y)
        self._paint_ground(site.lumen, x, y, *ground)
        self._fill(site.in_gland, x, y, abnormal=abnormal)

    def nest(self, site: LesionSite, x: float, y: float, *, abnormal: bool) -> None:
        """The same filling in the stroma, with no wall around it."""
        self._paint_ground(site.nest, x, y, *self._draw_ground())
        self._occupy(site.nest + 2.0, x, y)
        self._stroma_px -= float(np.pi * np.mean(site.nest**2))
        self._fill(site.in_nest, x, y, abnormal=abnormal)

    def plain_glands(self, glands: NDArray[np.float64]) -> None:
        """Glands without abnormal cells: empty, with secretion, or filled with normal cells."""
        crowded = self._rng.uniform(0.0, 0.25)
        for x, y, radius in glands:
            outer, lumen = draw_gland(self._rng, radius)
            ground = self._gland(outer, lumen, x, y)
            content = self._rng.uniform()
            if content < crowded:
                self._paint_ground(lumen, x, y, *ground)
                offsets = hexagonal_points(self._rng, lumen, NORMAL_SPACING_PX, 6.0)
                self._stamp_all(self._bank.normal, offsets, x, y)
            elif content < crowded + 0.25:
                self._paint_secretion(lumen, x, y)

    def clumps(self, slots: NDArray[np.float64]) -> None:
        """Clumps of lymphocytes in some of the free patches of stroma."""
        share = self._rng.uniform(0.0, 0.30)
        for x, y, radius in slots:
            if self._rng.uniform() < share:
                outline = draw_outline(self._rng, 0.6 * radius, 0.15)
                offsets = hexagonal_points(self._rng, outline, _CLUMP_SPACING_PX, 0.0)
                self._stamp_all(self._bank.lymphocyte, offsets, x, y)

    def stromal_nuclei(self) -> None:
        """Spindle nuclei along the fibres, and single lymphocytes, all over the free stroma."""
        count = round(self._stroma_px / self._nuclei_rng.uniform(1500, 2800))
        height_px, width_px = self._eosin.shape
        taken = np.asarray(self._occupied)
        stamped = 0
        while stamped < count:
            x, y = self._nuclei_rng.uniform(0, 1, (2, count)) * [[width_px - 1], [height_px - 1]]
            column, row = x.astype(np.int64), y.astype(np.int64)
            coarse_row = np.minimum(row // _OCCUPANCY_PX, taken.shape[0] - 1)
            coarse_column = np.minimum(column // _OCCUPANCY_PX, taken.shape[1] - 1)
            free = (taken[coarse_row, coarse_column] == 0) & self._tissue[row, column]
            kept = np.flatnonzero(free)[: count - stamped]
            stamped += kept.size
            self._stamp_stroma(x[kept], y[kept], self._index[row[kept], column[kept]])

    def finish(self) -> Drawing:
        """Soften the eosin edges (nuclei have soft edges already) and hand over."""
        eosin = Image.fromarray(self._eosin).filter(ImageFilter.GaussianBlur(1.0))
        return Drawing(
            self._haematoxylin,
            np.asarray(eosin),
            np.array(self._abnormal).reshape(-1, 2),
            np.array(self._glands).reshape(-1, 3),
        )

    def _draw_ground(self) -> tuple[float, float]:
        """Eosin and haematoxylin amounts of a cytoplasm."""
        return self._rng.uniform(36, 46), self._rng.uniform(16, 22)

    def _gland(self, outer: Outline, lumen: Outline, x: float, y: float) -> tuple[float, float]:
        """Paint a gland with an empty lumen and its ring of nuclei; its ground's amounts."""
        ground = self._draw_ground()
        self._paint_ground(outer, x, y, *ground)
        view, mask, _ = self._window(lumen, x, y)
        self._eosin[view][mask] = 0
        self._haematoxylin[view][mask] = 0
        self._occupy(outer + 4.0, x, y)
        self._stroma_px -= float(np.pi * np.mean(outer**2))
        self._glands.append((x, y, float(outer.mean())))
        self._stamp_all(self._bank.normal, self._ring(outer), x, y)
        return ground

    def _ring(self, outer: Outline) -> NDArray[np.float64]:
        """Offsets ``[n, 2]`` of nuclei just inside a gland's edge."""
        radii = outer - _RING_INSET_PX
        count = max(6, round(2 * np.pi * float(radii.mean()) / _RING_SPACING_PX))
        angle = (np.arange(count) + self._rng.uniform(-0.12, 0.12, count)) * 2 * np.pi / count
        radius = np.interp(angle, ANGLES, radii, period=2 * np.pi)
        radius = radius + self._rng.normal(0.0, 1.2, count)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def _paint_ground(
        self, outline: Outline, x: float, y: float, eosin: float, haematoxylin: float
    ) -> None:
        view, mask, index = self._window(outline, x, y)
        grain = np.take(self._textures.grain, index)
        self._eosin[view][mask] = np.clip(round(eosin) + grain, 0, 255)
        self._haematoxylin[view][mask] = np.clip(round(haematoxylin) + grain // 2, 0, 255)

    def _paint_secretion(self, outline: Outline, x: float, y: float) -> None:
        view, mask, index = self._window(outline, x, y)
        packed = np.take(self._textures.secretion, index)
        self._eosin[view][mask] = packed & 0xFF
        self._haematoxylin[view][mask] = packed >> 8

    def _window(
        self, outline: Outline, x: float, y: float
    ) -> tuple[tuple[slice, slice], NDArray[np.bool_], NDArray[np.int32]]:
        """Rows and columns around an outline, its mask there, and the texture index under it."""
        reach = int(np.ceil(outline.max())) + 2
        height_px, width_px = self._eosin.shape
        top, left = max(round(y) - reach, 0), max(round(x) - reach, 0)
        bottom, right = min(round(y) + reach, height_px), min(round(x) + reach, width_px)
        canvas = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(canvas).polygon(_corners(outline, x - left, y - top), fill=1)
        view = (slice(top, bottom), slice(left, right))
        mask = np.asarray(canvas) == 1
        return view, mask, self._index[view][mask]

    def _occupy(self, outline: Outline, x: float, y: float) -> None:
        scaled = outline / _OCCUPANCY_PX
        corners = _corners(scaled, x / _OCCUPANCY_PX, y / _OCCUPANCY_PX)
        ImageDraw.Draw(self._occupied).polygon(corners, fill=1)

    def _fill(self, filling: Filling, x: float, y: float, *, abnormal: bool) -> None:
        if abnormal:
            self._stamp_all(self._bank.normal, filling.around, x, y)
            self._stamp_all(self._bank.abnormal, filling.abnormal, x, y)
            self._abnormal += [(x + dx, y + dy) for dx, dy in filling.abnormal.tolist()]
        else:
            self._stamp_all(self._bank.normal, filling.plain, x, y)

    def _stamp_all(
        self, sprites: tuple[Sprite, ...], offsets: NDArray[np.float64], x: float, y: float
    ) -> None:
        chosen = self._nuclei_rng.integers(0, len(sprites), len(offsets))
        for which, (dx, dy) in zip(chosen.tolist(), offsets.tolist(), strict=True):
            stamp(self._haematoxylin, sprites[which], x + dx, y + dy)

    def _stamp_stroma(
        self, x: NDArray[np.float64], y: NDArray[np.float64], index: NDArray[np.int32]
    ) -> None:
        bank, rng = self._bank, self._nuclei_rng
        turn = np.take(self._textures.orientation, index) / ORIENTATIONS
        turn = np.mod(turn + rng.normal(0.0, 0.04, turn.size), 1.0)
        spindle = (turn * len(bank.stromal)).astype(np.int64) % len(bank.stromal)
        round_one = rng.integers(0, len(bank.lymphocyte), turn.size)
        is_spindle = rng.uniform(size=turn.size) >= 0.2
        for row in range(turn.size):
            sprite = (
                bank.stromal[spindle[row]] if is_spindle[row] else bank.lymphocyte[round_one[row]]
            )
            stamp(self._haematoxylin, sprite, float(x[row]), float(y[row]))


def _corners(outline: Outline, x: float, y: float) -> list[tuple[float, float]]:
    corner_x, corner_y = x + outline * np.cos(ANGLES), y + outline * np.sin(ANGLES)
    return list(zip(corner_x.tolist(), corner_y.tolist(), strict=True))


def _full_size(
    tissue_height: NDArray[np.float32], height_px: int, width_px: int
) -> NDArray[np.bool_]:
    """The coarse height field at full size, cut at zero."""
    box = (0.0, 0.0, width_px / GRID_PX, height_px / GRID_PX)
    size = (width_px, height_px)
    field = Image.fromarray(tissue_height).resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(field) > 0
