"""Pixels of blocks and tiles that a GPU decodes and averages, in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides.cuda_reader import CudaReader
from cmamil_sdk.slides.device_resample import area_average
from cmamil_sdk.tiling.blocks import MAX_READ_PX, LevelSquare
from cmamil_sdk.tiling.geometry import ReadGeometry


def decode_squares(
    reader: CudaReader, geometry: ReadGeometry, squares: Sequence[LevelSquare]
) -> dict[int, Any]:
    """The squares that the GPU decodes, by their place in ``squares``: ``[edge_px, edge_px, 3]``.

    Left to the host are those across the edge of the slide's bounds or of the level, those too large to
    be read at once, and all of a size among which one holds a damaged tile: the host finds out which.
    """
    together: dict[tuple[int, int, int], list[int]] = {}
    for number, square in enumerate(squares):
        (x0, y0, x1, y1), _ = square.strip(0, square.edge_px)
        is_small = square.size**2 <= MAX_READ_PX
        region = (square.level, x0, y0, x1 - x0, y1 - y0)
        if is_small and square.is_within(geometry) and reader.decodes(*region):
            together.setdefault((square.level, x1 - x0, y1 - y0), []).append(number)
    found: dict[int, Any] = {}
    for (level, width, height), numbers in together.items():
        corners = [squares[n].strip(0, squares[n].edge_px)[0][:2] for n in numbers]
        try:
            regions = reader.read_on_device(level, corners, width, height)
        except SlideCorrupt:
            continue
        for number, pixels in zip(numbers, regions, strict=True):
            edge_px = squares[number].edge_px
            _, inside = squares[number].strip(0, edge_px)
            found[number] = area_average(pixels, inside, edge_px, edge_px, reader.to_device)
    return found


__all__ = ["decode_squares"]
