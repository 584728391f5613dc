"""Tiled JPEG TIFFs made tile by tile, so that every byte can be chosen, and ways to spoil them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from imagecodecs import jpeg2k_encode, jpeg8_encode
from simplejpeg import encode_jpeg

Encode = Callable[[np.ndarray], bytes]
_FORMATS = {3: "H", 4: "I", 16: "Q"}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured blocks with noise, ``[height, width, 3]``: no two tiles look alike."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-height // 20), -(-width // 20)
    blocks = rng.integers(40, 220, (rows, columns, 3)).repeat(20, 0).repeat(20, 1)
    return np.clip(blocks[:height, :width] + rng.normal(0, 9, (height, width, 1)), 0, 255).astype(
        np.uint8
    )


def ycbcr(subsampling: str = "420") -> Encode:
    """JPEG of YCbCr with a JFIF segment."""
    return lambda tile: encode_jpeg(tile, quality=85, colorsubsampling=subsampling)


def rgb(tile: np.ndarray) -> bytes:
    """JPEG of RGB with an Adobe segment that says so."""
    return bytes(jpeg8_encode(tile, level=85, colorspace="RGB", outcolorspace="RGB"))


def jpeg_2000(tile: np.ndarray) -> bytes:
    """JPEG 2000 codestream as Aperio stores it: irreversible, with the colour transform."""
    return bytes(jpeg2k_encode(tile, level=40, codecformat="j2k", mct=True, reversible=False))


def write_aperio_2000(
    path: Path, levels: Sequence[np.ndarray], *, tile_px: int = 64, **tags: Any
) -> Path:
    """Write levels as Aperio's tiled JPEG 2000 (RGB)."""
    return write_levels(
        path,
        levels,
        tile_px=tile_px,
        encode=jpeg_2000,
        photometric="rgb",
        compression=33005,
        description="Aperio Image Library\r\n|MPP = 0.5",
        **tags,
    )


def segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment after the start; the last is the scan with all that follows."""
    start = 2
    while True:
        marker = jpeg[start + 1]
        if marker == 0xDA:
            yield marker, jpeg[start:]
            return
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        yield marker, jpeg[start:end]
        start = end


def without(jpeg: bytes, *markers: int) -> bytes:
    """A JPEG less the segments of these markers."""
    return b"\xff\xd8" + b"".join(body for marker, body in segments(jpeg) if marker not in markers)


def only(jpeg: bytes, *markers: int) -> bytes:
    """The segments of these markers as JPEG tables."""
    body = b"".join(body for marker, body in segments(jpeg) if marker in markers)
    return b"\xff\xd8" + body + b"\xff\xd9"


def tiles_of(pixels: np.ndarray, tile_px: int, encode: Encode) -> list[bytes]:
    """``pixels`` cut into tiles in row-major order, those at the edges filled up, and encoded."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile_px), (0, -width % tile_px), (0, 0)), mode="edge")
    return [
        encode(np.ascontiguousarray(padded[y : y + tile_px, x : x + tile_px]))
        for y in range(0, height, tile_px)
        for x in range(0, width, tile_px)
    ]


def write_levels(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    tile_px: int = 64,
    encode: Encode | None = None,
    photometric: str = "ycbcr",
    compression: str | int = "jpeg",
    bigtiff: bool = False,
    change: Callable[[bytes], bytes] = lambda tile: tile,
    **tags: Any,
) -> Path:
    """Write levels as tiled JPEG, or what ``encode`` makes; ``change`` is done to each encoded tile."""
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for number, pixels in enumerate(levels):
            stored = [change(t) for t in tiles_of(pixels, tile_px, encode or ycbcr())]
            writer.write(
                iter(stored),
                shape=pixels.shape,
                dtype=np.uint8,
                photometric=photometric,
                compression=compression,
                tile=(tile_px, tile_px),
                subfiletype=1 if number else 0,
                metadata=None,
                **tags,
            )
    return path


def tile_span(path: Path, number: int, page: int = 0) -> tuple[int, int]:
    """Where a stored tile lies: offset and byte count."""
    with tifffile.TiffFile(path) as file:
        found = file.pages[page]
        return found.dataoffsets[number], found.databytecounts[number]


def spoil_tile(path: Path, number: int, change: Callable[[bytes], bytes], page: int = 0) -> None:
    """Change the bytes of a stored tile in place; it keeps its length."""
    offset, size = tile_span(path, number, page)
    with path.open("r+b") as raw:
        raw.seek(offset)
        spoilt = change(raw.read(size))
        assert len(spoilt) == size
        raw.seek(offset)
        raw.write(spoilt)


def set_entry(path: Path, tag: str, number: int, value: int, page: int = 0) -> None:
    """Overwrite one number of a tag in place."""
    with tifffile.TiffFile(path) as file:
        found = file.pages[page].tags[tag]
        code = file.byteorder + _FORMATS[int(found.dtype)]
        place = found.valueoffset + number * struct.calcsize(code)
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(struct.pack(code, value))
