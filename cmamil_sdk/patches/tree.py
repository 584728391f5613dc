"""Tiles of slides as folders of images: which there are, and their pixels."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from cmamil_sdk.errors import NoTissue, SlideCorrupt, SlideIdDuplicate, SlideNotFound
from cmamil_sdk.patches.manifest import read_coordinates, read_manifest
from cmamil_sdk.tiling.recipe import Scale

UInt8 = npt.NDArray[np.uint8]

SUFFIXES = (".jpeg", ".jpg", ".png")
_NAME = re.compile(r"(\d+)_(\d+)")
_MAX_EDGE_PX = 8192  # above all that is written, and still decoded in little memory
_JPEG_START = b"\xff\xd8"
_UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error)


@dataclass(frozen=True)
class SlideFolder:
    """The tiles of one slide: its folder, and its class where the tree has classes."""

    path: Path
    slide_id: str
    label: str | None


@dataclass(frozen=True)
class TileFiles:
    """The tiles of a folder, by row, then column.

    Attributes:
        paths: one image each.
        addresses: ``(col, row)`` of each.
        corners: ``(x, y)`` of each, level-0 pixels, where ``cmamil tile`` wrote the folder.
        scale: their magnification, where ``cmamil tile`` wrote the folder.
    """

    paths: tuple[Path, ...]
    addresses: tuple[tuple[int, int], ...]
    corners: tuple[tuple[int, int], ...] | None
    scale: Scale | None


def find_slides(root: Path) -> list[SlideFolder]:
    """Folders of tiles: ``<root>/<class>/<slide>/``, ``<root>/<slide>/``, or ``root`` itself.

    The second is meant where a folder right below ``root`` holds images, the third where ``root`` does.

    Raises:
        SlideNotFound: there is none, or folders of both depths are mixed.
        SlideIdDuplicate: two classes hold a slide of the same name.
    """
    if not root.is_dir():
        raise SlideNotFound(f"There is no folder {root}; name the folder of tiles.")
    if _images(root):
        return [SlideFolder(root, root.resolve().name, None)]
    outer = _folders(root)
    with_images = [folder for folder in outer if _images(folder)]
    if with_images:
        return _flat(root, outer, with_images)
    slides = [SlideFolder(s, s.name, c.name) for c in outer for s in _folders(c)]
    if not slides:
        raise SlideNotFound(
            f"There are no tiles in {root}; name a folder with <class>/<slide>/<col>_<row>.jpeg, as "
            "`cmamil tile` writes it."
        )
    _refuse_doubles(slides)
    return slides


def list_tiles(slide: SlideFolder) -> TileFiles:
    """The images of a slide's folder.

    Raises:
        NoTissue: there is none.
        SlideCorrupt: the folder's name is no UTF-8, a tile's is no ``<col>_<row>``, a place is taken
            twice, or the manifest is damaged or lacks a tile.
    """
    _check_name(slide)
    found: dict[tuple[int, int], Path] = {}
    for path in _images(slide.path):
        name = _NAME.fullmatch(path.stem)
        if name is None:
            raise SlideCorrupt(
                f"{path} is not named <col>_<row>, so its place is not known; rename or remove it."
            )
        address = int(name[2]), int(name[1])
        if address in found:
            raise SlideCorrupt(f"{found[address]} and {path} are one tile; remove one of them.")
        found[address] = path
    if not found:
        raise NoTissue(f"{slide.path} holds no tile; tile the slide again, or remove the folder.")
    places = sorted(found)
    addresses = tuple((col, row) for row, col in places)
    manifest = read_manifest(slide.path)
    return TileFiles(
        paths=tuple(found[place] for place in places),
        addresses=addresses,
        corners=None if manifest is None else _corners(slide.path, addresses),
        scale=None if manifest is None else manifest.recipe.scale,
    )


def _check_name(slide: SlideFolder) -> None:
    try:
        f"{slide.label}/{slide.slide_id}".encode()  # features and what is said of them bear it
    except UnicodeEncodeError as problem:
        raise SlideCorrupt(f"{slide.path} is no name in UTF-8; rename the folder.") from problem


def read_image(path: Path) -> UInt8:
    """A tile ``[px, px, 3]``.

    Raises:
        SlideCorrupt: it cannot be decoded, or is not square.
    """
    try:
        pixels = _decoded(path)
    except _UNDECODABLE as problem:
        raise SlideCorrupt(
            f"{path} cannot be decoded ({problem}); tile the slide again, or remove this tile."
        ) from problem
    if pixels.shape[0] != pixels.shape[1]:
        raise SlideCorrupt(
            f"{path} has {pixels.shape[1]} x {pixels.shape[0]} px, and tiles are square; tile it again."
        )
    return pixels


def _decoded(path: Path) -> UInt8:
    data = path.read_bytes()
    if data.startswith(_JPEG_START):
        # Pillow takes damaged JPEG data for whole and makes up what is missing.
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
        _check_size(width, height)
        whole: UInt8 = simplejpeg.decode_jpeg(data, "RGB", strict=True)
        return whole
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        pixels: UInt8 = np.asarray(image.convert("RGB"))
    return pixels


def _check_size(width: int, height: int) -> None:
    if max(width, height) > _MAX_EDGE_PX:
        raise ValueError(f"{width} x {height} px are no tile's")


def _flat(root: Path, outer: list[Path], with_images: list[Path]) -> list[SlideFolder]:
    deeper = [folder for folder in outer if folder not in with_images and _folders(folder)]
    if deeper:
        raise SlideNotFound(
            f"{with_images[0]} holds tiles and {deeper[0]} holds folders; have all slides of {root} in "
            "folders of classes, or none."
        )
    return [SlideFolder(folder, folder.name, None) for folder in outer]


def _refuse_doubles(slides: list[SlideFolder]) -> None:
    seen: dict[str, SlideFolder] = {}
    for slide in slides:
        first = seen.setdefault(slide.slide_id, slide)
        if first is not slide:
            raise SlideIdDuplicate(
                f"{first.path} and {slide.path} have the same slide id {slide.slide_id!r}; rename one."
            )


def _corners(folder: Path, addresses: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    known = read_coordinates(folder)
    missing = [address for address in addresses if address not in known]
    if missing:
        col, row = missing[0]
        raise SlideCorrupt(
            f"{folder}/tiles.csv does not name tile {col}_{row}; remove it, or tile the slide again."
        )
    return tuple(known[address] for address in addresses)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("[!.]*") if path.is_dir())


__all__ = ["SlideFolder", "TileFiles", "find_slides", "list_tiles", "read_image"]
