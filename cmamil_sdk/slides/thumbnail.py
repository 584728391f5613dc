"""A small picture of a slide, through any reader."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cmamil_sdk.slides.base import SlideReader
from cmamil_sdk.slides.resample import area_average

UInt8 = npt.NDArray[np.uint8]

_STRIP_PX = 2_000_000
_MAX_READ_PX = 2**23


def bounds_thumbnail(reader: SlideReader, max_px: int) -> UInt8:
    """The bounds of the slide, ``[h, w, 3]``, neither edge longer than ``max_px``.

    Raises:
        SlideCorrupt: a part of it cannot be decoded.
    """
    facts = reader.facts
    shrink = max(1.0, max(facts.bounds[2:]) / max_px)
    fitting = [i for i, lv in enumerate(facts.levels) if lv.downsample <= shrink]
    level = fitting[-1]
    scale = facts.levels[level].downsample
    x, y, width, height = (int(edge / scale) for edge in facts.bounds)
    width, height = max(1, width), max(1, height)
    shrink = max(1.0, max(width, height) / max_px)
    out_w, out_h = max(1, int(width / shrink)), max(1, int(height / shrink))
    out = np.empty((out_h, out_w, 3), dtype=np.uint8)
    # In strips: a slide without a pyramid need not fit into memory.
    strip = max(1, int(_STRIP_PX / (width * shrink)))
    # And in pieces, where even a strip of one row would not.
    piece = max(1, int(_MAX_READ_PX / (width / out_w * height / out_h * strip)))
    for first in range(0, out_h, strip):
        for begin in range(0, out_w, piece):
            last, end = min(out_h, first + strip), min(out_w, begin + piece)
            top, bottom = first * height / out_h, last * height / out_h
            left, right = begin * width / out_w, end * width / out_w
            x0, y0 = math.floor(left), math.floor(top)
            size = (math.ceil(right) - x0, math.ceil(bottom) - y0)
            region = reader.read_region(level, x + x0, y + y0, *size)
            box = (left - x0, top - y0, right - x0, bottom - y0)
            out[first:last, begin:end] = area_average(region, box, end - begin, last - first)
    return out


__all__ = ["bounds_thumbnail"]
