"""A thumbnail with what would be read drawn in: tissue, tiles, excluded ink, and a scale bar."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cmamil_sdk.explain.holes import LOST, thumbnail_with_holes
from cmamil_sdk.files import write_atomic
from cmamil_sdk.slides import SlideReader
from cmamil_sdk.tiling.plan import TilePlan
from cmamil_sdk.tiling.tissue import TissueMap
from cmamil_sdk.wording import counted

BoolMask = npt.NDArray[np.bool_]
UInt8 = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

MAX_PX = 1600
TISSUE, PEN = (240, 120, 0), (190, 0, 150)
SCALES: tuple[Colour, ...] = (
    *((20, 20, 20), (0, 84, 180), (0, 140, 70)),
    *((200, 30, 30), (120, 60, 200)),
)
"""Colours of the scales' tiles, coarse to fine: as many as nest."""

_MIN_TILE_PX = 6  # lines closer than this would hide the slide
_UNREAD_WHITE = 0.55
_MARGIN_PX, _ROW_PX, _SWATCH_PX, _TEXT_PX = 12, 26, 16, 15
_MIN_WIDTH_PX = 480
_BAR_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class _Entry:
    """A line of the legend; ``border`` is a frame's width, 0 for a filled swatch."""

    text: str
    colour: Colour
    border: int = 0


def write_overview(
    path: Path, reader: SlideReader, plan: TilePlan | None, found: TissueMap | None
) -> None:
    """Write a PNG of the slide's bounds with a legend below.

    What no tile of the finest scale covers is pale. Tissue is outlined, as are the tiles, finer scales
    in thinner lines; a scale whose tiles would be narrower than 6 px has no lines. Excluded ink is
    hatched, and what cannot be decoded has a colour of its own. Without ``plan`` and ``found``, which
    go together, it is the slide alone.

    Raises:
        SlideCorrupt: more than 5 % of the level that is shown cannot be decoded.
        OutputUnwritable: the picture cannot be written.
    """
    pixels, has_holes = thumbnail_with_holes(reader, MAX_PX)
    picture = Image.fromarray(pixels)
    px_per_level0 = picture.width / reader.facts.bounds[2]
    entries: list[_Entry] = []
    if plan is not None and found is not None:
        picture = Image.fromarray(_painted(np.asarray(picture), px_per_level0, plan, found))
        entries = [_Entry("tissue", TISSUE, 2), *_draw_tiles(picture, px_per_level0, plan)]
        if plan.recipe.tissue.pens == "exclude":
            entries.append(_Entry("pen, excluded", PEN))
        entries.append(_Entry(f"not read at {plan.recipe.finest.name}", (225, 225, 225)))
    if has_holes:
        entries.append(_Entry("cannot be decoded", LOST))
    mpp = reader.facts.mpp
    px_per_mm = None if mpp is None else px_per_level0 * 1000 / mpp
    png = io.BytesIO()
    _with_legend(picture, entries, px_per_mm).save(png, format="PNG")
    write_atomic(path, png.getvalue())


def _painted(pixels: UInt8, px_per_level0: float, plan: TilePlan, found: TissueMap) -> UInt8:
    """The slide ``[h, w, 3]``, pale where nothing is read, with ink hatched and tissue outlined."""
    shape = pixels.shape[:2]
    geometry, finest = plan.geometry, plan.scales[-1]
    ratio = geometry.block_ratio
    read = np.zeros((geometry.rows * ratio, geometry.columns * ratio), dtype=bool)
    read[finest.index[:, 1], finest.index[:, 0]] = True
    is_read = _at_pixels(read, finest.size_level0 * px_per_level0, shape)
    cell_px = found.grid.size_level0 * px_per_level0
    image = pixels.astype(np.float32)
    image[~is_read] += (255 - image[~is_read]) * _UNREAD_WHITE
    ink = _at_pixels(found.pens, cell_px, shape)
    hatch = (np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 8) < 3
    image[ink] = 0.5 * image[ink] + 0.5 * np.array(PEN)
    image[ink & hatch] = PEN
    image[_outline(_at_pixels(found.tissue, cell_px, shape))] = TISSUE
    return image.round().astype(np.uint8)


def _at_pixels(mask: BoolMask, size_px: float, shape: tuple[int, ...]) -> BoolMask:
    """A mask of squares of ``size_px`` picture pixels, looked up under each pixel ``[h, w]``."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) / size_px).astype(np.int64), limit - 1)
        for n, limit in zip(shape, mask.shape, strict=True)
    )
    looked_up: BoolMask = mask[rows[:, None], columns[None, :]]
    return looked_up


def _outline(mask: BoolMask) -> BoolMask:
    """The two pixels along the border of a mask."""
    image = Image.fromarray(mask.astype(np.uint8))
    wide, narrow = image.filter(ImageFilter.MaxFilter(3)), image.filter(ImageFilter.MinFilter(3))
    border: BoolMask = np.asarray(wide) != np.asarray(narrow)
    return border


def _draw_tiles(picture: Image.Image, px_per_level0: float, plan: TilePlan) -> list[_Entry]:
    """Frame the tiles, finest first so that coarse lines lie on top; returns the legend's lines."""
    draw, entries = ImageDraw.Draw(picture), []
    x0, y0 = plan.geometry.origin
    for number, planned in reversed(list(enumerate(plan.scales))):
        colour, width = SCALES[number], len(plan.scales) - number
        edge = planned.size_level0 * px_per_level0
        count = f"{counted(len(planned.index), 'tile')} at {planned.name}"
        if edge < _MIN_TILE_PX:
            entries.append(_Entry(f"{count}, too small to draw", (255, 255, 255), 1))
            continue
        entries.append(_Entry(count, colour, width))
        for x, y in planned.coords:
            left, top = (x - x0) * px_per_level0, (y - y0) * px_per_level0
            draw.rectangle((left, top, left + edge, top + edge), outline=colour, width=width)
    return entries[::-1]


def _with_legend(
    picture: Image.Image, entries: Sequence[_Entry], px_per_mm: float | None
) -> Image.Image:
    """The picture above a white strip with the scale bar and the legend's lines."""
    font = ImageFont.load_default(_TEXT_PX)
    width = max(picture.width, _MIN_WIDTH_PX)
    places, x, row = [], float(_MARGIN_PX), 0
    if px_per_mm is not None:
        x += _bar(width, px_per_mm)[1] + 8 * _MARGIN_PX
    for entry in entries:
        needed = _SWATCH_PX + 6 + font.getlength(entry.text)
        if x + needed > width - _MARGIN_PX and x > _MARGIN_PX:
            x, row = float(_MARGIN_PX), row + 1
        places.append((x, row))
        x += needed + 2 * _MARGIN_PX
    strip_px = 0 if px_per_mm is None and not entries else (row + 1) * _ROW_PX + 2 * _MARGIN_PX
    canvas = Image.new("RGB", (width, picture.height + strip_px), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    top = picture.height + _MARGIN_PX
    if px_per_mm is not None:
        length_mm, bar_px = _bar(width, px_per_mm)
        middle = top + _ROW_PX / 2
        draw.rectangle((_MARGIN_PX, middle - 3, _MARGIN_PX + bar_px, middle + 2), fill="black")
        draw.text(
            (_MARGIN_PX + bar_px + 8, middle), f"{length_mm:g} mm", "black", font, anchor="lm"
        )
    for entry, (left, line) in zip(entries, places, strict=True):
        middle = top + (line + 0.5) * _ROW_PX
        box = (left, middle - _SWATCH_PX / 2, left + _SWATCH_PX, middle + _SWATCH_PX / 2)
        fill = None if entry.border else entry.colour
        draw.rectangle(box, fill=fill, outline=entry.colour, width=entry.border or 1)
        draw.text((left + _SWATCH_PX + 6, middle), entry.text, "black", font, anchor="lm")
    return canvas


def _bar(width: int, px_per_mm: float) -> tuple[float, float]:
    """Length of the scale bar in mm and in pixels: the longest round one within a fifth of the width."""
    fitting = [mm for mm in _BAR_MM if mm * px_per_mm <= width / 5]
    length_mm = fitting[-1] if fitting else _BAR_MM[0]
    return length_mm, length_mm * px_per_mm


__all__ = ["MAX_PX", "PEN", "SCALES", "TISSUE", "write_overview"]
