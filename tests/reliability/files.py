"""Files that are good, spoilt, or no slides at all: each with a sentence that says what it is."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile

from cmamil_sdk.synthetic.svs import write_svs

from ..slides.tiffs import (
    close_circle,
    first_directory,
    picture,
    set_entry,
    spoil_tile,
    write_levels,
    ycbcr,
)

EDGE_PX, TILE_PX = 512, 64
_COLUMNS = EDGE_PX // TILE_PX


@dataclass(frozen=True)
class Trial:
    """One file to try.

    Attributes:
        group: heading of the table it belongs to.
        name: file name; its stem is the slide's id.
        what: what is special about it.
        make: writes it, given its path and the intact slide.
        same_pixels: whether tiles that are read must have the intact slide's features.
    """

    group: str
    name: str
    what: str
    make: Callable[[Path, Path], object]
    same_pixels: bool = True


def intact_pixels() -> np.ndarray:
    """Texture everywhere but for one column of glass: 7 x 8 tiles of 64 px at 20x."""
    pixels = picture(EDGE_PX, EDGE_PX, seed=5)
    pixels[:, EDGE_PX - TILE_PX :] = 244
    return pixels


def write_intact(path: Path) -> Path:
    """The slide that the others are made of: 20x, levels 1 and 4, stored tiles of 64 px."""
    write_svs(
        intact_pixels(),
        path,
        mpp=0.5,
        objective_power=20.0,
        tile_px=TILE_PX,
        downsamples=(1, 4),
    )
    return path


def _cut(kept: Callable[[int], int]) -> Callable[[Path, Path], object]:
    def make(path: Path, intact: Path) -> None:
        whole = intact.read_bytes()
        path.write_bytes(whole[: kept(len(whole))])

    return make


def _copied(change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    def make(path: Path, intact: Path) -> None:
        path.write_bytes(intact.read_bytes())
        change(path)

    return make


def _replaced(old: bytes, new: bytes) -> Callable[[Path, Path], object]:
    """The intact slide with some text in its descriptions changed."""
    assert len(old) == len(new)

    def make(path: Path, intact: Path) -> None:
        whole = intact.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))

    return make


def _spoilt(
    number: int, change: Callable[[bytes], bytes], page: int = 0
) -> Callable[[Path, Path], object]:
    return _copied(lambda path: spoil_tile(path, number, change, page))


def _zeroed(tile: bytes) -> bytes:
    return bytes(len(tile))


def _half_zeroed(tile: bytes) -> bytes:
    return tile[: len(tile) // 2] + bytes(len(tile) - len(tile) // 2)


def _flipped(tile: bytes) -> bytes:
    """One bit of the coded pixels the other way round."""
    place = tile.index(b"\xff\xda") + (len(tile) - tile.index(b"\xff\xda")) // 3
    return tile[:place] + bytes([tile[place] ^ 0x10]) + tile[place + 1 :]


def _of_another_size(tile: bytes) -> bytes:
    frame = tile.index(b"\xff\xc0") + 5
    return tile[:frame] + b"\xff\xdc\xff\xdc" + tile[frame + 4 :]


def _many_zeroed(path: Path) -> None:
    for number in range(0, _COLUMNS * _COLUMNS, 9):
        spoil_tile(path, number, _zeroed)


def _entry(tag: str, number: int, value: int) -> Callable[[Path, Path], object]:
    return _copied(lambda path: set_entry(path, tag, number, value))


def _tag_count(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    struct.pack_into("<H", raw, first_directory(raw), 65535)
    path.write_bytes(raw)


def _value_count(path: Path) -> None:
    """The list of tile offsets claims 2^31 entries."""
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags["TileOffsets"].offset + 4
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(struct.pack("<I", 2**31))


def _many_directories(path: Path, _intact: Path) -> None:
    """5,000 directories of one pixel each."""
    entries = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, 1), (279, 4, 1, 1)]  # fmt: skip
    size = 2 + 12 * len(entries) + 4
    raw = bytearray(b"II*\0" + struct.pack("<I", 12) + b"\0\0\0\0")
    for number in range(5_000):
        start = 12 + number * size
        raw += struct.pack("<H", len(entries))
        for entry in entries:
            raw += struct.pack("<HHII", *entry)
        raw += struct.pack("<I", start + size if number < 4_999 else 0)
    path.write_bytes(raw)


def _deflate_bomb(path: Path, _intact: Path) -> None:
    """One tile of 16,384 x 16,384 px: 800 MB when it is unpacked, 800 kB in the file."""
    packer = zlib.compressobj()
    start = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    tifffile.imwrite(
        path,
        iter([start + again * (3 * 16_384**2 // 2**20 - 1) + packer.flush()]),
        shape=(16_384, 16_384, 3),
        dtype=np.uint8,
        tile=(16_384, 16_384),
        photometric="rgb",
        compression="deflate",
        metadata=None,
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )


def _claims(width: int, height: int) -> Callable[[Path, Path], object]:
    def change(path: Path) -> None:
        set_entry(path, "ImageWidth", 0, width)
        set_entry(path, "ImageLength", 0, height)

    return _copied(change)


def _sparse(path: Path, _intact: Path) -> None:
    """A TIFF of 500,000 x 500,000 px, all of whose tiles are left out."""
    edge, tile = 500_000, 4096
    tiles = (-(-edge // tile)) ** 2
    counts_at, offsets_at = 4096, 4096 + 4 * tiles
    entries = [
        (254, 4, 1, 0), (256, 4, 1, edge), (257, 4, 1, edge), (258, 3, 3, 2048), (259, 3, 1, 7),
        (262, 3, 1, 6), (277, 3, 1, 3), (282, 5, 1, 2064), (283, 5, 1, 2064), (284, 3, 1, 1),
        (296, 3, 1, 3), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, tiles, offsets_at),
        (325, 4, tiles, counts_at),
    ]  # fmt: skip
    raw = bytearray(offsets_at + 4 * tiles)
    struct.pack_into("<4sIH", raw, 0, b"II*\0", 8, len(entries))
    for number, entry in enumerate(entries):
        struct.pack_into("<HHII", raw, 10 + 12 * number, *entry)
    struct.pack_into("<HHH", raw, 2048, 8, 8, 8)
    struct.pack_into("<II", raw, 2064, 20_000, 1)
    path.write_bytes(raw)


def _tiff(name: str, what: str, x_per_unit: float, y_per_unit: float, unit: str) -> Trial:
    """The intact picture as a plain TIFF, coded anew, with these resolution tags."""

    def make(path: Path, _intact: Path) -> None:
        write_levels(
            path,
            [intact_pixels()],
            encode=ycbcr("444"),
            resolution=(x_per_unit, y_per_unit),
            resolutionunit=unit,
        )

    return Trial(SCALE, name, what, make, same_pixels=False)


def _sparse_level(path: Path, _intact: Path) -> None:
    """The intact picture as a plain TIFF; of the four tiles of level 1, the upper two have no bytes."""
    pixels = intact_pixels()
    write_levels(
        path,
        [pixels, pixels[::4, ::4]],
        encode=ycbcr("444"),
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    for number in (0, 1):
        set_entry(path, "TileByteCounts", number, 0, page=1)


def _glass(path: Path, _intact: Path) -> None:
    pixels = np.full((EDGE_PX, EDGE_PX, 3), 244, np.uint8)
    write_svs(pixels, path, mpp=0.5, objective_power=20.0, tile_px=TILE_PX, downsamples=(1, 4))


def _one_pixel(path: Path, _intact: Path) -> None:
    write_levels(path, [picture(1, 1)], resolution=(20_000, 20_000), resolutionunit="CENTIMETER")


def _forbidden(path: Path, intact: Path) -> None:
    path.write_bytes(intact.read_bytes())
    path.chmod(0)


CUT = "Files that are cut short"
TILES = "Damaged tiles"
SIZES = "Claims of size"
DIRECTORIES = "Damaged directories"
NAMES = "Files that are no slide, or not what their name says"
SCALE = "Scale and tissue"

SLIDES = (
    Trial(CUT, "empty.svs", "no byte", _cut(lambda _size: 0)),
    Trial(CUT, "cut-header.svs", "6 bytes left", _cut(lambda _size: 6)),
    Trial(CUT, "cut-directory.svs", "ends in its first directory", _cut(lambda _size: 100)),
    Trial(CUT, "cut-tiles.svs", "half of it left", _cut(lambda size: size // 2)),
    Trial(CUT, "cut-last-byte.svs", "all but the last byte left", _cut(lambda size: size - 1)),
    Trial(CUT, "zeros.svs", "as long as the slide, all zeros",
          lambda path, intact: path.write_bytes(bytes(intact.stat().st_size))),
    Trial(TILES, "tile-zeroed.svs", "one tile is zeros", _spoilt(11, _zeroed)),
    Trial(TILES, "tile-half-zeroed.svs", "half of a tile is zeros", _spoilt(11, _half_zeroed)),
    Trial(TILES, "tile-bit-flipped.svs", "one bit of a tile's coded pixels flipped, see below",
          _spoilt(11, _flipped), same_pixels=False),
    Trial(TILES, "tile-of-another-size.svs", "a tile claims 65500 x 65500 px",
          _spoilt(11, _of_another_size)),
    Trial(TILES, "tile-beyond-the-end.svs", "a tile lies beyond the end of the file",
          _entry("TileOffsets", 11, 2**31)),
    Trial(TILES, "tile-absurd-size.svs", "a tile claims 4 GiB in the file",
          _entry("TileByteCounts", 11, 2**32 - 1)),
    Trial(TILES, "tile-left-out.svs", "a tile of 0 bytes, which is how glass is left out",
          _entry("TileByteCounts", 11, 0), same_pixels=False),
    Trial(TILES, "tiles-zeroed.svs", "8 of 64 tiles are zeros", _copied(_many_zeroed)),
    Trial(TILES, "overview-zeroed.svs", "a tile of the level in which tissue is looked for is zeros",
          _spoilt(0, _zeroed, page=2)),
    Trial(TILES, "level-with-holes.tiff", "half of level 1's tiles have 0 bytes, and level 0 is whole",
          _sparse_level, same_pixels=False),
    Trial(SIZES, "deflate-bomb.tiff", "one tile that unpacks to 800 MB", _deflate_bomb),
    Trial(SIZES, "claims-2e9-px.svs", "claims 2,000,000,000 px along both axes",
          _claims(2 * 10**9, 2 * 10**9)),
    Trial(SIZES, "claims-wide.svs", "claims 2,000,000,000 px in width",
          _claims(2 * 10**9, EDGE_PX)),
    Trial(SIZES, "claims-half-width.svs", "claims half its width, so that tiles would be misplaced",
          _claims(EDGE_PX // 2, EDGE_PX)),
    Trial(SIZES, "claims-nothing.svs", "claims 0 x 0 px", _claims(0, 0)),
    Trial(SIZES, "claims-large-tile.svs", "claims tiles of 64 x 16,777,216 px",
          _entry("TileLength", 0, 2**24)),
    Trial(SIZES, "sparse.tiff", "500,000 x 500,000 px of which no tile is stored", _sparse),
    Trial(SIZES, "one-pixel.tiff", "1 x 1 px", _one_pixel, same_pixels=False),
    Trial(DIRECTORIES, "loop.svs", "the last directory is followed by the first",
          _copied(close_circle)),
    Trial(DIRECTORIES, "loop-at-once.svs", "the first directory is followed by itself",
          _copied(partial(close_circle, to_itself=True))),
    Trial(DIRECTORIES, "many-directories.tiff", "5,000 directories", _many_directories),
    Trial(DIRECTORIES, "many-tags.svs", "the first directory claims 65,535 tags",
          _copied(_tag_count)),
    Trial(DIRECTORIES, "many-tiles.svs", "claims to list 2^31 tiles", _copied(_value_count)),
    Trial(NAMES, "svs-named.png", "the intact slide",
          lambda path, intact: path.write_bytes(intact.read_bytes())),
    Trial(NAMES, "text.tif", "a text", lambda path, _intact: path.write_text("no slide\n")),
    Trial(NAMES, "folder.svs", "a directory", lambda path, _intact: path.mkdir()),
    Trial(NAMES, "pipe.svs", "a named pipe", lambda path, _intact: os.mkfifo(path)),
    Trial(NAMES, "device.svs", "a link to /dev/zero",
          lambda path, _intact: path.symlink_to("/dev/zero")),
    Trial(NAMES, "dangling.svs", "a link to nothing",
          lambda path, _intact: path.symlink_to("nothing.svs")),
    Trial(NAMES, "link-loop.svs", "a link to itself",
          lambda path, _intact: path.symlink_to(path.name)),
    Trial(NAMES, "forbidden.svs", "may not be read", _forbidden),
    Trial(SCALE, "glass.svs", "no tissue", _glass),
    Trial(SCALE, "no-mpp.svs", "states an objective, no microns per pixel",
          _replaced(b"|MPP = 0.5000", b"|xyz = 0.5000")),
    Trial(SCALE, "no-scale.svs", "states neither",
          _replaced(b"AppMag = 20|MPP = 0.5000", b"AppXyz = 20|Xyz = 0.5000")),
    Trial(SCALE, "mpp-zero.svs", "0 microns per pixel", _replaced(b"MPP = 0.5000", b"MPP = 0.0000")),
    Trial(SCALE, "mpp-negative.svs", "-0.5 microns per pixel",
          _replaced(b"MPP = 0.5000", b"MPP = -0.500")),
    Trial(SCALE, "mpp-absurd.svs", "999 microns per pixel",
          _replaced(b"MPP = 0.5000", b"MPP = 999.00")),
    Trial(SCALE, "mpp-word.svs", "microns per pixel that are no number",
          _replaced(b"MPP = 0.5000", b"MPP = narrow")),
    Trial(SCALE, "coarse.svs", "2 microns per pixel, too coarse for 20x",
          _replaced(b"MPP = 0.5000", b"MPP = 2.0000")),
    _tiff("centimetres.tiff", "20,000 px per centimetre", 20_000, 20_000, "CENTIMETER"),
    _tiff("inches.tiff", "50,800 px per inch", 50_800, 50_800, "INCH"),
    _tiff("no-unit.tiff", "20,000 px per unit, without the unit", 20_000, 20_000, "NONE"),
    _tiff("screen.tiff", "72 px per inch, as drawing programs write", 72, 72, "INCH"),
    _tiff("not-square.tiff", "0.5 x 0.25 microns per pixel", 20_000, 40_000, "CENTIMETER"),
    _tiff("one-axis.tiff", "20,000 px per centimetre along x, 0 along y", 20_000, 0, "CENTIMETER"),
)  # fmt: skip
