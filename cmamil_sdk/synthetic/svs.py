"""Write pixels as a pyramidal, tiled, JPEG-compressed slide file in Aperio's layout.

OpenSlide and cuCIM read the result as vendor ``aperio``, with magnification and microns per pixel.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.files import write_atomic

_THUMBNAIL_PX = 512
_MAKER = "Aperio Image Library (cmamil-sdk generated)"


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
    size = f"{width}x{height}"
    coding = f"({tile_px}x{tile_px}) JPEG/YCC Q={quality}"
    facts = f"AppMag = {objective_power:g}|MPP = {mpp:.4f}"
    file = io.BytesIO()
    with tifffile.TiffWriter(file, byteorder="<") as writer:
        for index, factor in enumerate(downsamples):
            level = pixels if factor == 1 else _reduced(image, factor)
            reduced = f"{level.shape[1]}x{level.shape[0]}"
            region = f"{size} [0,0 {size}]" + (f" -> {reduced}" if index else "")
            text = f"{_MAKER}\r\n{region} {coding}|{facts}"
            _write_page(writer, level, text, quality, tile_px)
            if index == 0:
                thumbnail = _thumbnail(image)
                shown = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
                text = f"{_MAKER}\r\n{size} -> {shown} - |{facts}"
                _write_page(writer, thumbnail, text, quality, None)
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


def _write_page(
    writer: tifffile.TiffWriter,
    pixels: NDArray[np.uint8],
    description: str,
    quality: int,
    tile_px: int | None,
) -> None:
    """Append one directory; without ``tile_px`` it is stored in strips."""
    writer.write(
        pixels,
        photometric="rgb",  # tifffile converts to YCbCr itself; "ycbcr" would mean it already is
        compression="jpeg",
        compressionargs={"level": quality},
        tile=None if tile_px is None else (tile_px, tile_px),
        rowsperstrip=16 if tile_px is None else None,
        description=description,
        metadata=None,
        software="",
        maxworkers=1,
    )
