"""Evidence of every tile, drawn over the slide, beside the slide itself.

The evidence of all scales is added up cell by cell: a coarse tile's share is spread evenly over the
area it covers. Red speaks for the predicted class, blue against it; the stronger, the more opaque.
The slide under the colours is grey, because stained tissue is red and blue itself.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cmamil_sdk.files import write_atomic
from cmamil_sdk.predict import Prediction, evidence
from cmamil_sdk.slides import ReaderName, open_slide

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

FOR, AGAINST = (200, 16, 46), (0, 84, 180)
_MAX_OPACITY = 0.65
_STRONGEST_PERCENTILE = 98.0
_CAPTION_PX = 44
_GAP_PX = 12


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
    """The slide, and beside it the evidence for its predicted class, under a caption.

    Args:
        thumbnail: the slide's bounds, ``[h, w, 3]``.
        bounds: ``(x, y, width, height)``, level-0 pixels.
        prediction: with maps.
    """
    class_index = list(prediction.probabilities).index(prediction.label)
    grid = evidence_grid(prediction, bounds, class_index)
    height, width = thumbnail.shape[:2]
    scale = width / bounds[2]
    cell = prediction.maps[-1].size * scale
    colour, opacity = _paint(grid)
    # Cells become squares of whole pixels first, then are cut to the slide's edge.
    size = (max(1, round(grid.shape[1] * cell)), max(1, round(grid.shape[0] * cell)))
    layer = Image.fromarray(colour).resize(size, Image.Resampling.NEAREST)
    mask = Image.fromarray(opacity).resize(size, Image.Resampling.NEAREST)
    slide = Image.fromarray(thumbnail)
    picture = slide.convert("L").convert("RGB")
    box = (0, 0, min(size[0], width), min(size[1], height))
    picture.paste(layer.crop(box), box[:2], mask.crop(box))
    canvas = Image.new("RGB", (max(2 * width + _GAP_PX, 360), height + _CAPTION_PX), "white")
    canvas.paste(slide, (0, _CAPTION_PX))
    canvas.paste(picture, (width + _GAP_PX, _CAPTION_PX))
    _caption(canvas, prediction)
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

    ``reader`` is that of :func:`~cmamil_sdk.slides.open_slide`.

    Raises:
        InputError: the slide cannot be opened or its overview cannot be decoded.
    """
    with open_slide(slide, reader=reader) as opened:
        picture = draw_heatmap(opened.thumbnail(max_px), opened.facts.bounds, prediction)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    write_atomic(target, png.getvalue())


def _paint(grid: Float64) -> tuple[UInt8, UInt8]:
    """Colours ``[rows, columns, 3]`` and opacity ``[rows, columns]`` (0 to 255) of the cells."""
    known = ~np.isnan(grid)
    values = np.where(known, grid, 0.0)
    strongest = np.percentile(np.abs(values[known]), _STRONGEST_PERCENTILE) if known.any() else 0.0
    strength = np.clip(np.abs(values) / strongest, 0, 1) if strongest > 0 else np.zeros(grid.shape)
    colour = np.where(values[..., None] >= 0, np.array(FOR), np.array(AGAINST)).astype(np.uint8)
    return colour, (strength * _MAX_OPACITY * 255 + 0.5).astype(np.uint8)


def _caption(canvas: Image.Image, prediction: Prediction) -> None:
    draw = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(15), ImageFont.load_default(12)
    probability = prediction.probabilities[prediction.label]
    headline = f"{prediction.slide}: {prediction.label} {probability:.2f}"
    draw.text((6, 4), headline, fill="black", font=large)
    draw.rectangle((6, 27, 18, 39), fill=FOR)
    draw.text((24, 26), f"for {prediction.label}", fill="black", font=small)
    offset = 36 + int(draw.textlength(f"for {prediction.label}", font=small))
    draw.rectangle((offset, 27, offset + 12, 39), fill=AGAINST)
    draw.text((offset + 18, 26), "against it", fill="black", font=small)


__all__ = ["draw_heatmap", "evidence_grid", "save_heatmap"]
