"""Evidence of every tile, drawn over the slide, beside the slide itself.

The evidence of all scales is added up cell by cell: a coarse tile's share is spread evenly over the
area it covers, so that the cells of a picture add up to the evidence of the whole slide. Red speaks
for the predicted class, blue against it; the stronger, the more opaque. The slide under the colours
is grey, because stained tissue is red and blue itself. A legend gives the values of the colours.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cmamil_sdk.explain.holes import thumbnail_with_holes
from cmamil_sdk.files import write_atomic
from cmamil_sdk.predict import Prediction, evidence
from cmamil_sdk.slides import ReaderName, open_slide

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

FOR, AGAINST = (200, 16, 46), (0, 84, 180)
_MAX_OPACITY = 0.65
_STRONGEST_PERCENTILE = 98.0
_MARGIN_PX, _CAPTION_PX, _GAP_PX, _LEAST_WIDTH_PX = 6, 28, 12, 360
_BAR_PX = (200, 12)
_BAR_GREY = 215  # of pale tissue, on which the colours of the bar look as in the picture
_LINE_PX = 16
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def evidence_grid(
    prediction: Prediction, bounds: tuple[int, int, int, int], class_index: int
) -> Float64:
    """Evidence per finest grid cell, ``[rows, columns]``, NaN where no tile was read.

    Args:
        prediction: with maps, coarse to fine.
        bounds: ``(x, y, width, height)`` of the slide, level-0 pixels; the grid starts at its corner.
        class_index: for which class.
    """
    x0, y0, width, height = bounds
    cell = prediction.maps[-1].size
    grid = np.zeros((math.ceil(height / cell), math.ceil(width / cell)))
    seen = np.zeros(grid.shape, dtype=bool)
    for scale_map in prediction.maps:
        ratio = round(scale_map.size / cell)
        density = evidence(scale_map, class_index) / ratio**2
        corners = np.rint((scale_map.coords - (x0, y0)) / cell).astype(np.int64)
        for (column, row), value in zip(corners, density, strict=True):
            area = (slice(row, row + ratio), slice(column, column + ratio))
            grid[area] += value
            seen[area] = True
    grid[~seen] = np.nan
    return grid


def draw_heatmap(
    thumbnail: UInt8, bounds: tuple[int, int, int, int], prediction: Prediction
) -> Image.Image:
    """The slide, and beside it the evidence for its predicted class, under a caption, with a legend.

    Args:
        thumbnail: the slide's bounds, ``[h, w, 3]``.
        bounds: ``(x, y, width, height)``, level-0 pixels.
        prediction: with maps.
    """
    class_index = list(prediction.probabilities).index(prediction.label)
    grid = evidence_grid(prediction, bounds, class_index)
    limit = _limit(grid)
    height, width = thumbnail.shape[:2]
    cell = prediction.maps[-1].size * width / bounds[2]
    total = max(2 * width + _GAP_PX, _LEAST_WIDTH_PX)
    legend = _legend(total, prediction, grid, limit)
    canvas = Image.new("RGB", (total, _CAPTION_PX + height + legend.height), "white")
    canvas.paste(Image.fromarray(thumbnail), (0, _CAPTION_PX))
    canvas.paste(_overlay(thumbnail, grid, cell, limit), (width + _GAP_PX, _CAPTION_PX))
    canvas.paste(legend, (0, _CAPTION_PX + height))
    probability = prediction.probabilities[prediction.label]
    headline = f"{prediction.slide}: {prediction.label} {probability:.2f}"
    font = ImageFont.load_default(15)
    ImageDraw.Draw(canvas).text((_MARGIN_PX, 4), headline, fill="black", font=font)
    return canvas


def save_heatmap(
    slide: Path,
    target: Path,
    prediction: Prediction,
    *,
    max_px: int,
    reader: ReaderName = "auto",
) -> None:
    """Draw the heatmap of ``slide`` and write it to ``target`` (PNG), atomically.

    What cannot be decoded has a colour of its own. ``reader`` is that of
    :func:`~cmamil_sdk.slides.open_slide`.

    Raises:
        InputError: the slide cannot be opened, or more than 5 % of its overview cannot be decoded.
    """
    with open_slide(slide, reader=reader) as opened:
        thumbnail, _ = thumbnail_with_holes(opened, max_px)
        picture = draw_heatmap(thumbnail, opened.facts.bounds, prediction)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    write_atomic(target, png.getvalue())


def _limit(grid: Float64) -> float:
    """The evidence that gets the full colour, as more does; 0 if there is none at all."""
    known = np.abs(grid[~np.isnan(grid)])
    if not known.size:
        return 0.0
    return float(np.percentile(known, _STRONGEST_PERCENTILE)) or float(known.max())


def _overlay(thumbnail: UInt8, grid: Float64, cell: float, limit: float) -> Image.Image:
    """The grey slide under the colours of cells that are ``cell`` pixels wide."""
    height, width = thumbnail.shape[:2]
    colour, opacity = _paint(grid, limit)
    # Cells become squares of whole pixels first, then are cut to the slide's edge.
    size = (max(1, round(grid.shape[1] * cell)), max(1, round(grid.shape[0] * cell)))
    layer = Image.fromarray(colour).resize(size, Image.Resampling.NEAREST)
    mask = Image.fromarray(opacity).resize(size, Image.Resampling.NEAREST)
    picture = Image.fromarray(thumbnail).convert("L").convert("RGB")
    box = (0, 0, min(size[0], width), min(size[1], height))
    picture.paste(layer.crop(box), box[:2], mask.crop(box))
    return picture


def _paint(grid: Float64, limit: float) -> tuple[UInt8, UInt8]:
    """Colours ``[rows, columns, 3]`` and opacity ``[rows, columns]`` (0 to 255) of the cells."""
    values = np.where(np.isnan(grid), 0.0, grid)
    strength = np.clip(np.abs(values) / limit, 0, 1) if limit > 0 else np.zeros(grid.shape)
    colour = np.where(values[..., None] >= 0, np.array(FOR), np.array(AGAINST)).astype(np.uint8)
    return colour, (strength * _MAX_OPACITY * 255 + 0.5).astype(np.uint8)


def _legend(width: int, prediction: Prediction, grid: Float64, limit: float) -> Image.Image:
    """What the colours mean: a bar with its values, and the definition of evidence."""
    font = ImageFont.load_default(12)
    text = _meaning(prediction, grid, limit)
    lines = _wrapped(text, font, width - 2 * _MARGIN_PX)
    top = 8 + _BAR_PX[1] + _LINE_PX + 6
    legend = Image.new("RGB", (width, top + _LINE_PX * len(lines) + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(legend)
    left = _MARGIN_PX + int(font.getlength("against it")) + 8
    legend.paste(_bar(), (left, 8))
    draw.text((_MARGIN_PX, 7), "against it", fill="black", font=font)
    draw.text((left + _BAR_PX[0] + 8, 7), "for it", fill="black", font=font)
    ends = [(0.0, -limit), (1.0, limit)] if limit else []
    for place, value in [(0.5, 0.0), *ends]:
        at = (left + place * _BAR_PX[0], 8 + _BAR_PX[1] + 2)
        draw.text(at, _signed(value), fill="black", font=font, anchor="ma")
    for number, line in enumerate(lines):
        draw.text((_MARGIN_PX, top + _LINE_PX * number), line, fill="black", font=font)
    return legend


def _bar() -> Image.Image:
    """The colours from the strongest evidence against the class to the strongest for it."""
    values = np.linspace(-1.0, 1.0, _BAR_PX[0])[None]
    colour, opacity = _paint(values, 1.0)
    bar = Image.new("RGB", (_BAR_PX[0], 1), (_BAR_GREY,) * 3)
    bar.paste(Image.fromarray(colour), (0, 0), Image.fromarray(opacity))
    return bar.resize(_BAR_PX, Image.Resampling.NEAREST)


def _meaning(prediction: Prediction, grid: Float64, limit: float) -> str:
    """The legend's sentences: of what the values are, and between which they lie."""
    if limit == 0:
        return f"No tile speaks for or against {prediction.label}."
    names = [scale_map.scale for scale_map in prediction.maps]
    spread = (
        f" {', '.join(names)} are added up: a larger tile's value is spread evenly over the area of "
        f"the {names[-1]} tiles in it."
    )
    return (
        f"Evidence per tile at {names[-1]}: its share in the logit of {prediction.label}, less its "
        f"mean share in those of all classes.{spread if len(names) > 1 else ''} Found: "
        f"{_signed(float(np.nanmin(grid)))} to {_signed(float(np.nanmax(grid)))}; "
        f"{_STRONGEST_PERCENTILE:g} % lie within the bar."
    )


def _signed(value: float) -> str:
    return f"{value:+.2g}" if value else "0"


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """Lines of whole words, none wider than ``width`` pixels where its words are not."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


__all__ = ["draw_heatmap", "evidence_grid", "save_heatmap"]
