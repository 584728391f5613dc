"""Slides as large as real ones, written in seconds and with little memory.

A few sheets of tissue, each of four pieces, are drawn and encoded once. The slide is laid out in cells
of one sheet each; where a cell is all tissue its tiles are the sheet's, already encoded, and only cells
across the tissue's outline are encoded anew. Tissue repeats from cell to cell, so such a slide measures
speed and teaches nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.synthetic.stains import SlideStain, draw_stain, stain_pixels
from cmamil_sdk.synthetic.svs import SvsFacts, write_level, write_thumbnail
from cmamil_sdk.synthetic.textures import smooth_noise
from cmamil_sdk.synthetic.tissue import draw_tissue

UInt8 = NDArray[np.uint8]
BoolMask = NDArray[np.bool_]

_TILE_PX = 240
_MPP = 0.499
_OBJECTIVE_POWER = 20.0
_QUALITY = 85
_OUTLINE_PX = 40
"""Edge of a point of the tissue's outline; divides every cell."""

_PIECES = 6
_PIECE_SHARE = 0.47
"""The middle of a drawing, where its own outline is far away."""

_THUMBNAIL_PX = 512


@dataclass(frozen=True)
class LargeSlide:
    """A square slide at 20x (0.499 µm/px), JPEG tiles of 240 px, 4:2:0; all of it follows from here.

    Attributes:
        size_px: edge of level 0.
        tissue_share: share of the slide that is tissue.
        seed: of tissue, stain and outline.
        downsamples: of the levels; each divides the last.
        sheets: how many different cells of tissue there are, each 240 px times the last downsample.
    """

    size_px: int = 20_000
    tissue_share: float = 0.25
    seed: int = 0
    downsamples: tuple[int, ...] = (1, 4, 16)
    sheets: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn (FieldInvalid)."""
        largest = self.downsamples[-1]
        if self.downsamples[0] != 1 or any(largest % factor for factor in self.downsamples):
            raise FieldInvalid(
                f"downsamples must start with 1 and divide the last, but are {list(self.downsamples)}; "
                "give for example 1, 4, 16"
            )
        if self.size_px < self.cell_px:
            raise FieldInvalid(
                f"size_px must be at least {self.cell_px} for levels 1 to 1/{largest}, but is "
                f"{self.size_px}; draw a larger slide or fewer levels"
            )
        if not 0 < self.tissue_share < 1:
            raise FieldInvalid(
                f"tissue_share must lie between 0 and 1, but is {self.tissue_share}; "
                "give for example 0.25"
            )
        if self.sheets < 1:
            raise FieldInvalid(
                f"sheets must be 1 or more, but is {self.sheets}; give for example 3"
            )

    @property
    def cell_px(self) -> int:
        """Edge of a cell, level-0 pixels: one tile of the coarsest level."""
        return _TILE_PX * self.downsamples[-1]


@dataclass(frozen=True)
class _Cell:
    """One cell: its tiles as JPEG for each level, rows of rows, and its pixels at the coarsest."""

    tiles: tuple[list[list[bytes]], ...]
    coarsest: UInt8


def write_large_slide(slide: LargeSlide, path: Path) -> Path:
    """Write ``slide`` as an Aperio-style SVS; the file appears under its name only when complete.

    The bytes depend on ``slide`` alone. Memory hardly grows with the slide: its coarsest level is held.
    """
    edges = [slide.size_px // factor for factor in slide.downsamples]
    facts = SvsFacts(slide.size_px, slide.size_px, _MPP, _OBJECTIVE_POWER, _TILE_PX, _QUALITY)
    layout = _Layout(slide)
    kept: list[list[list[bytes]]] = [[] for _ in edges]  # tile rows of the levels but the first
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tifffile.TiffWriter(temporary, byteorder="<") as writer:
            write_level(writer, layout.finest_tiles(kept), facts, edges[0], edges[0])
            write_thumbnail(writer, layout.thumbnail(), facts)
            for edge, rows in zip(edges[1:], kept[1:], strict=True):
                write_level(writer, _in_order(rows, edge), facts, edge, edge)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Layout:
    """Which sheet lies in which cell, and where tissue ends."""

    def __init__(self, slide: LargeSlide) -> None:
        self._slide = slide
        self._cells = -(-slide.size_px // slide.cell_px)
        rng = np.random.default_rng([slide.seed, 1])
        self._choice = rng.integers(0, slide.sheets, (self._cells, self._cells))
        self._height = _outline(rng, self._cells * slide.cell_px // _OUTLINE_PX, slide)
        stain = draw_stain(np.random.default_rng([slide.seed, 0]))
        self._glass = np.round(stain.white).astype(np.uint8)
        pieces = [_piece(slide, number, stain) for number in range(_PIECES)]
        order = [rng.permutation(_PIECES)[:4] for _ in range(slide.sheets)]
        self._sheets = [_sheet([pieces[number] for number in four]) for four in order]
        self._whole = [self._encode(sheet) for sheet in self._sheets]
        empty = np.broadcast_to(self._glass, self._sheets[0].shape)
        self._empty = self._encode(np.ascontiguousarray(empty))
        self._coarsest: list[UInt8] = []

    def finest_tiles(self, kept: list[list[list[bytes]]]) -> Iterator[bytes]:
        """Tiles of level 0, row by row; those of the other levels are put into ``kept``."""
        for row in range(self._cells):
            cells = [self._cell(row, column) for column in range(self._cells)]
            rows = [_side_by_side(cells, level) for level in range(len(kept))]
            for level in range(1, len(kept)):
                kept[level] += rows[level]
            self._coarsest.append(np.hstack([cell.coarsest for cell in cells]))
            above = row * len(rows[0])
            yield from _in_order(rows[0], self._slide.size_px, above)

    def thumbnail(self) -> UInt8:
        """The slide as one small image, once its cells have been written."""
        edge = self._slide.size_px // self._slide.downsamples[-1]
        image = Image.fromarray(np.vstack(self._coarsest)[:edge, :edge])
        return np.asarray(image.reduce(max(1, -(-edge // _THUMBNAIL_PX))))

    def _cell(self, row: int, column: int) -> _Cell:
        sheet, tissue = int(self._choice[row, column]), self._tissue(row, column)
        if tissue is None:
            return self._empty
        if tissue.all():
            return self._whole[sheet]
        return self._encode(np.where(tissue[..., None], self._sheets[sheet], self._glass))

    def _tissue(self, row: int, column: int) -> BoolMask | None:
        """Tissue in a cell ``[cell, cell]``; None if there is none."""
        points, edge = self._slide.cell_px // _OUTLINE_PX, self._slide.cell_px
        left, top = column * points, row * points
        around = self._height[
            max(top - 1, 0) : top + points + 1, max(left - 1, 0) : left + points + 1
        ]
        if around.max() <= 0:
            return None
        if around.min() > 0:
            return np.ones((1, 1), dtype=bool)
        box = (left, top, left + points, top + points)
        field = Image.fromarray(self._height).resize(
            (edge, edge), Image.Resampling.BILINEAR, box=box
        )
        return np.asarray(field) > 0

    def _encode(self, pixels: UInt8) -> _Cell:
        image, levels = Image.fromarray(pixels), []
        for factor in self._slide.downsamples:
            reduced = np.asarray(image if factor == 1 else image.reduce(factor))
            levels.append(_encode_tiles(reduced))
        return _Cell(tuple(levels), reduced)


def _piece(slide: LargeSlide, number: int, stain: SlideStain) -> UInt8:
    """Pixels ``[cell / 2, cell / 2, 3]`` of tissue without an edge: the middle of a drawing."""
    edge = slide.cell_px // 2
    drawn = round(edge / _PIECE_SHARE)
    seed = int(np.random.default_rng([slide.seed, 2, number]).integers(2**31))
    drawing = draw_tissue("benign", 0, drawn, drawn, seed=seed, bank_seed=0)
    start = (drawn - edge) // 2
    middle = slice(start, start + edge)
    return stain_pixels(drawing.haematoxylin[middle, middle], drawing.eosin[middle, middle], stain)


def _sheet(pieces: list[UInt8]) -> UInt8:
    """Four pieces as one square."""
    return np.vstack([np.hstack(pieces[:2]), np.hstack(pieces[2:])])


def _outline(rng: np.random.Generator, points: int, slide: LargeSlide) -> NDArray[np.float32]:
    """Height field over all cells, positive on ``tissue_share`` of the slide: a few ragged pieces."""
    inside = -(-slide.size_px // _OUTLINE_PX)
    place = np.linspace(-1, 1, inside, dtype=np.float32)
    field = 1 - place**2 - place[:, None] ** 2
    field += 0.3 * smooth_noise(rng, inside, inside, max(2, inside // 8))
    field -= np.quantile(field, 1 - slide.tissue_share)
    height = np.full((points, points), -1, np.float32)
    height[:inside, :inside] = field
    return height


def _encode_tiles(pixels: UInt8) -> list[list[bytes]]:
    """Rows of JPEG tiles of an image whose edges are whole tiles."""
    starts = range(0, len(pixels), _TILE_PX)
    return [
        [_encode_tile(pixels[y : y + _TILE_PX, x : x + _TILE_PX]) for x in starts] for y in starts
    ]


def _encode_tile(tile: UInt8) -> bytes:
    pixels = np.ascontiguousarray(tile)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorsubsampling="420"))


def _side_by_side(cells: list[_Cell], level: int) -> list[list[bytes]]:
    """Rows of tiles across all cells of a row of cells."""
    return [
        [tile for cell in cells for tile in cell.tiles[level][row]]
        for row in range(len(cells[0].tiles[level]))
    ]


def _in_order(rows: list[list[bytes]], edge_px: int, above: int = 0) -> Iterator[bytes]:
    """Tiles of a level of ``edge_px``, row by row; ``rows`` begin ``above`` rows below its top."""
    count = -(-edge_px // _TILE_PX)
    for row in rows[: count - above]:
        yield from row[:count]


__all__ = ["LargeSlide", "write_large_slide"]
