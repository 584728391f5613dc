"""Write pixels as a pyramidal, tiled, JPEG-compressed slide file in Aperio's layout.

OpenSlide and cuCIM read the result as vendor ``aperio``, with magnification and microns per pixel.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import write_atomic

_THUMBNAIL_PX = 512
_MAKER = "Aperio Image Library (cmamil-sdk generated)"


@dataclass(frozen=True)
class SvsFacts:
    """What every directory of a file says: level 0 in pixels, its scale, and how tiles are stored."""

    width_px: int
    height_px: int
    mpp: float
    objective_power: float
    tile_px: int
    quality: int

    def level_text(self, width_px: int, height_px: int) -> str:
        """The description of a level of this size."""
        size, reduced = f"{self.width_px}x{self.height_px}", f"{width_px}x{height_px}"
        region = f"{size} [0,0 {size}]" + ("" if reduced == size else f" -> {reduced}")
        coding = f"({self.tile_px}x{self.tile_px}) JPEG/YCC Q={self.quality}"
        return f"{_MAKER}\r\n{region} {coding}|{self._scale}"

    def thumbnail_text(self, width_px: int, height_px: int) -> str:
        """The description of a thumbnail of this size."""
        size = f"{self.width_px}x{self.height_px}"
        return f"{_MAKER}\r\n{size} -> {width_px}x{height_px} - |{self._scale}"

    @property
    def _scale(self) -> str:
        return f"AppMag = {self.objective_power:g}|MPP = {self.mpp:.4f}"


def write_svs(
    pixels: NDArray[np.uint8],
    path: Path,
    *,
    mpp: float,
    objective_power: float,
    tile_px: int = 240,
    quality: int = 85,
    downsamples: Sequence[int] = (1, 4, 16),
) -> None:
    """Write ``pixels`` ``[H, W, 3]`` (RGB, level 0) to ``path`` as an Aperio-style SVS.

    Coarser levels are area averages by the whole numbers of ``downsamples``, which start with 1
    and grow; a level's size is the level-0 size divided and cut off. The layout is Aperio's: level
    0, a stripped thumbnail, the coarser levels. The file appears under its name only when complete.

    Args:
        mpp: microns per pixel of level 0.
        objective_power: magnification the file states.
        tile_px: edge of the stored tiles, a multiple of 16.
        quality: JPEG quality, 1 to 100.

    Raises:
        FieldInvalid: the pixels or an option cannot be written this way.
    """
    _check(pixels, mpp, objective_power, tile_px, quality, downsamples)
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    facts = SvsFacts(width, height, mpp, objective_power, tile_px, quality)
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder="<") as writer:
        for index, factor in enumerate(downsamples):
            level = pixels if factor == 1 else _reduced(image, factor)
            write_level(writer, level, facts, level.shape[1], level.shape[0])
            if index == 0:
                write_thumbnail(writer, _thumbnail(image), facts)
    write_atomic(path, file.getvalue())


def _check(
    pixels: NDArray[np.uint8],
    mpp: float,
    objective_power: float,
    tile_px: int,
    quality: int,
    downsamples: Sequence[int],
) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise FieldInvalid(
            f"pixels must be uint8 of shape [height, width, 3], but are {pixels.dtype} "
            f"{list(pixels.shape)}; convert them to RGB first"
        )
    if not (mpp > 0 and objective_power > 0):
        raise FieldInvalid(
            f"mpp and objective_power must be above 0, but are {mpp} and {objective_power}; "
            "give for example 0.5 and 20"
        )
    if tile_px < 16 or tile_px % 16:
        raise FieldInvalid(f"tile_px must be a multiple of 16, but is {tile_px}; give 240 or 256")
    if not 1 <= quality <= 100:
        raise FieldInvalid(f"quality must be 1 to 100, but is {quality}; 85 is usual")
    growing = all(a < b for a, b in pairwise(downsamples))
    smallest_px = min(pixels.shape[:2])
    if not downsamples or downsamples[0] != 1 or not growing or downsamples[-1] > smallest_px:
        raise FieldInvalid(
            f"downsamples must start with 1, grow and stay below the image's {smallest_px} px, "
            f"but are {list(downsamples)}; give for example 1, 4, 16"
        )


def _reduced(image: Image.Image, factor: int) -> NDArray[np.uint8]:
    """Area average by ``factor``, the rest at the right and bottom edges cut off."""
    box = (0, 0, image.width // factor * factor, image.height // factor * factor)
    return np.asarray(image.reduce(factor, box))


def _thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """The whole slide as one small image."""
    factor = max(1, -(-max(image.size) // _THUMBNAIL_PX))
    return np.asarray(image.reduce(factor))


def write_level(
    writer: tifffile.TiffWriter,
    tiles: NDArray[np.uint8] | Iterator[bytes],
    facts: SvsFacts,
    width_px: int,
    height_px: int,
) -> None:
    """Append a level of ``width_px`` x ``height_px``: its pixels, or its tiles as JPEG, row by row.

    Encoded tiles are ``tile_px`` square, 4:2:0; the outer ones are full tiles too.
    """
    writer.write(
        tiles,
        shape=(height_px, width_px, 3),
        dtype=np.uint8,
        tile=(facts.tile_px, facts.tile_px),
        description=facts.level_text(width_px, height_px),
        **_jpeg(facts.quality),
    )


def write_thumbnail(
    writer: tifffile.TiffWriter, pixels: NDArray[np.uint8], facts: SvsFacts
) -> None:
    """Append the thumbnail ``[h, w, 3]``, stored in strips."""
    writer.write(
        pixels,
        rowsperstrip=16,
        description=facts.thumbnail_text(pixels.shape[1], pixels.shape[0]),
        **_jpeg(facts.quality),
    )


def _jpeg(quality: int) -> dict[str, Any]:
    return {
        "photometric": "rgb",  # tifffile converts to YCbCr itself; "ycbcr" would mean it already is
        "compression": "jpeg",
        "compressionargs": {"level": quality},
        "metadata": None,
        "software": "",
        "maxworkers": 1,
    }
