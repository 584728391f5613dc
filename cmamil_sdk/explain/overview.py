"""A thumbnail with the tiles that would be read drawn in."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cmamil_sdk.files import write_atomic
from cmamil_sdk.slides import SlideReader
from cmamil_sdk.tiling.plan import TilePlan

MAX_PX = 1024
_COLOURS = ((20, 20, 20), (0, 84, 180), (0, 140, 70))


def write_overview(path: Path, reader: SlideReader, plan: TilePlan | None) -> None:
    """Write a PNG of the slide's bounds; kept tiles are outlined, finer scales in thinner lines."""
    picture = Image.fromarray(reader.thumbnail(MAX_PX))
    if plan is not None:
        x0, y0, width, _ = reader.facts.bounds
        scale = picture.width / width
        draw = ImageDraw.Draw(picture)
        for number, planned in reversed(list(enumerate(plan.scales))):
            line_px = len(plan.scales) - number
            for x, y in planned.coords:
                left, top = (x - x0) * scale, (y - y0) * scale
                edge = planned.size_level0 * scale
                draw.rectangle(
                    (left, top, left + edge, top + edge),
                    outline=_COLOURS[number % len(_COLOURS)],
                    width=line_px,
                )
        _legend(draw, [planned.name for planned in plan.scales])
    png = io.BytesIO()
    picture.save(png, format="PNG")
    write_atomic(path, png.getvalue())


def _legend(draw: ImageDraw.ImageDraw, names: list[str]) -> None:
    for number, name in enumerate(names):
        top = 6 + 20 * number
        draw.rectangle((6, top, 66, top + 18), fill="white", outline="#999999")
        draw.rectangle((10, top + 4, 20, top + 14), fill=_COLOURS[number % len(_COLOURS)])
        draw.text((26, top + 2), name, fill="black", font=ImageFont.load_default(12))


__all__ = ["write_overview"]
