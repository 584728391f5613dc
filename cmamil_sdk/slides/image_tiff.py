"""TIFF files that are one picture: untiled, or tiled in a way that OpenSlide does not know."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from cmamil_sdk.slides.base import PLAUSIBLE_MPP
from cmamil_sdk.slides.image_header import (
    DamagedImage,
    ImageHeader,
    UnknownImage,
    known_orientation,
)
from cmamil_sdk.slides.jpeg_tiles import DamagedTile, decode_tile, tile_prefix
from cmamil_sdk.slides.tiff_grids import MAX_TILE_PX, UNPARSABLE
from cmamil_sdk.slides.tiff_pages import tiff_pages
from cmamil_sdk.slides.tiff_strips import inflated, unpacked_by_libtiff

UInt8 = npt.NDArray[np.uint8]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MICRONS_PER_CENTIMETRE = 10_000
_MAX_TRUSTED_MPP = 10.0
"""Coarser than 1000 pixels per centimetre, tags hold what printers and screens need, not a scale."""

_JPEG = tifffile.COMPRESSION.JPEG
_CONTIGUOUS = tifffile.PLANARCONFIG.CONTIG
_HORIZONTAL = tifffile.PREDICTOR.HORIZONTAL
_PREDICTORS = (tifffile.PREDICTOR.NONE, _HORIZONTAL)


_UNPACKERS: Mapping[int, Callable[[bytes, int], bytes | bytearray]] = {
    tifffile.COMPRESSION.NONE: lambda data, _: data,
    tifffile.COMPRESSION.LZW: lambda data, size: unpacked_by_libtiff(data, size, lzw=True),
    tifffile.COMPRESSION.PACKBITS: lambda data, size: unpacked_by_libtiff(data, size, lzw=False),
    tifffile.COMPRESSION.ADOBE_DEFLATE: inflated,
    tifffile.COMPRESSION.DEFLATE: inflated,
    tifffile.COMPRESSION.ZSTD: lambda data, size: imagecodecs.zstd_decode(data, out=size),
}
"""Codings that are read, besides JPEG: what each makes of stored bytes, given how many are wanted."""

_GREY = tifffile.PHOTOMETRIC.MINISBLACK
_RGB = tifffile.PHOTOMETRIC.RGB
_YCBCR = tifffile.PHOTOMETRIC.YCBCR
_UNASSOCIATED_ALPHA = (tifffile.EXTRASAMPLE.UNASSALPHA,)
_CODEC_FAILURES = (*UNPARSABLE, zlib.error, RuntimeError)


def tiff_header(path: Path) -> ImageHeader:
    """Describe a TIFF without decoding its pixels.

    Raises:
        DamagedImage: it is cut short, or its directory makes no sense.
        UnknownImage: several pictures, or one of a coding or kind that is not read.
    """
    try:
        with tiff_pages(path) as pages:
            page = _the_page(pages)
            _check_kind(page)
            return ImageHeader(
                width=page.imagewidth,
                height=page.imagelength,
                compression=tifffile.COMPRESSION(page.compression).name.lower(),
                orientation=known_orientation(_tag(page, "Orientation")),
                mpp=_mpp(page),
                warnings=_warnings(pages),
            )
    except UNPARSABLE as problem:
        # What tifffile found is for the reader; what Python ran into on the way is not.
        found = problem if isinstance(problem, tifffile.TiffFileError) else "it is cut short"
        raise DamagedImage(f"its directory cannot be read ({found})") from problem


def tiff_pixels(path: Path) -> UInt8:
    """Pixels ``[height, width, channels]``: grey, RGB, or RGB and alpha.

    Raises:
        DamagedImage: data are missing or corrupt.
    """
    try:
        with tiff_pages(path) as pages:
            page = _the_page(pages)
            pixels = np.empty(
                (page.imagelength, page.imagewidth, page.samplesperpixel), dtype=np.uint8
            )
            for part, plane, y, x in _parts(page):
                place = pixels[y : y + part.shape[0], x : x + part.shape[1], plane]
                place[...] = part[: place.shape[0], : place.shape[1]]
            return pixels
    except DamagedTile as problem:
        raise DamagedImage(str(problem)) from problem
    except _CODEC_FAILURES as problem:
        raise DamagedImage(f"its pixels cannot be decoded ({problem})") from problem


def _the_page(pages: list[tifffile.TiffPage]) -> tifffile.TiffPage:
    """The one picture of the file: its first page, if all others are smaller or marked as reduced."""
    for page in pages:
        _check_whole(page)
    first, *others = pages
    for page in others:
        smaller = page.imagewidth < first.imagewidth and page.imagelength < first.imagelength
        if not (smaller or page.is_reduced):
            raise UnknownImage(
                f"it holds {len(pages)} pictures; save the one that is meant as a file of its own"
            )
    return first


def _check_whole(page: tifffile.TiffPage) -> None:
    file_bytes = page.parent.filehandle.size
    size = (page.imagewidth, page.imagelength)
    if not all(isinstance(edge, int) and edge > 0 for edge in size):
        raise DamagedImage("its directory states no size")
    segments = math.prod(page.chunked)
    if len(page.dataoffsets) != segments or len(page.databytecounts) != segments:
        raise DamagedImage("its directory does not list all of its pixels")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > file_bytes:
            raise DamagedImage("it is cut short, or leaves out pixels")


def _check_kind(page: tifffile.TiffPage) -> None:
    if page.is_tiled and page.tilewidth * page.tilelength > MAX_TILE_PX:
        raise UnknownImage(
            f"it has tiles of {page.tilewidth} x {page.tilelength} pixels; save it with smaller ones"
        )
    if page.compression != _JPEG and page.compression not in _UNPACKERS:
        name = tifffile.COMPRESSION(page.compression).name.lower()
        raise UnknownImage(f"it is stored as {name}; save it uncompressed, or with deflate or LZW")
    if page.predictor not in _PREDICTORS or page.fillorder != 1:
        raise UnknownImage("its bytes are in an unusual order; save it anew")
    if page.dtype != np.uint8 or page.bitspersample != 8 or page.imagedepth != 1:
        raise UnknownImage(f"it has samples of {page.bitspersample} bits; convert it to 8")
    kind = (page.photometric, page.samplesperpixel)
    with_alpha = kind == (_RGB, 4) and page.extrasamples == _UNASSOCIATED_ALPHA
    if page.compression == _JPEG:
        known = kind in ((_RGB, 3), (_YCBCR, 3)) and page.planarconfig == _CONTIGUOUS
    else:
        known = kind in ((_GREY, 1), (_RGB, 3)) or with_alpha
    if not known:
        name = tifffile.PHOTOMETRIC(page.photometric).name.lower()
        raise UnknownImage(
            f"it has {page.samplesperpixel} channels of kind {name}; convert it to RGB"
        )


def _parts(page: tifffile.TiffPage) -> Iterator[tuple[UInt8, slice, int, int]]:
    """Decoded strips or tiles ``[h, w, channels]``, which channels they hold, and their y and x."""
    file = page.parent.filehandle
    decode = _decoder(page)
    height, width = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    )
    columns, rows = -(-page.imagewidth // width), -(-page.imagelength // height)
    for number, (offset, count) in enumerate(
        zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        plane, place = divmod(number, columns * rows)
        y, x = place // columns * height, place % columns * width
        file.seek(offset)
        part = decode(
            file.read(count), height if page.is_tiled else min(height, page.imagelength - y), width
        )
        channels = slice(None) if page.planarconfig == _CONTIGUOUS else slice(plane, plane + 1)
        yield part, channels, y, x


def _decoder(page: tifffile.TiffPage) -> Callable[[bytes, int, int], UInt8]:
    """What makes pixels ``[height, width, channels]`` of a stored strip or tile of that size."""
    if page.compression == _JPEG:
        prefix = tile_prefix(page.jpegtables, ycbcr=page.photometric == _YCBCR)
        return lambda data, height, width: decode_tile(data, prefix, width, height)
    channels = page.samplesperpixel if page.planarconfig == _CONTIGUOUS else 1
    unpack = _UNPACKERS[page.compression]
    # Only the last of several strips may go on beyond the image; others that do are of another width.
    full_height = page.tilelength if page.is_tiled else page.rowsperstrip

    def decode(data: bytes, height: int, width: int) -> UInt8:
        size = height * width * channels
        unpacked = unpack(data, size)
        if len(unpacked) < size:
            raise DamagedImage("a strip or tile is cut short")
        if len(unpacked) > size and height == full_height:
            raise DamagedImage("a strip or tile holds more pixels than the image has room for")
        part = np.frombuffer(unpacked, np.uint8, size).reshape(height, width, channels)
        if page.predictor == _HORIZONTAL:
            part = np.cumsum(part, axis=1, dtype=np.uint8)
        return part

    return decode


def _mpp(page: tifffile.TiffPage) -> tuple[float, float] | None:
    """From the resolution tags, if they count pixels per centimetre and a microscope can be meant."""
    if _tag(page, "ResolutionUnit") != tifffile.RESUNIT.CENTIMETER:
        return None
    values = []
    for name in ("XResolution", "YResolution"):
        stated = _tag(page, name)
        if not isinstance(stated, tuple) or len(stated) != 2 or 0 in stated:
            return None
        values.append(_MICRONS_PER_CENTIMETRE * stated[1] / stated[0])
    x, y = values
    if not all(PLAUSIBLE_MPP[0] <= value <= _MAX_TRUSTED_MPP for value in values):
        return None
    return x, y


def _warnings(pages: list[tifffile.TiffPage]) -> tuple[str, ...]:
    warnings = []
    if _mpp(pages[0]) is not None:
        warnings.append("Microns per pixel are those of the TIFF's resolution tags.")
    if len(pages) > 1:
        warnings.append(f"Of the TIFF's {len(pages)} pages only the first is read.")
    return tuple(warnings)


def _tag(page: tifffile.TiffPage, name: str) -> object:
    tag = page.tags.get(name)
    return None if tag is None else tag.value


__all__ = ["TIFF_STARTS", "tiff_header", "tiff_pixels"]
