"""Legal TIFFs that few programs write: OpenSlide's pixels, or OpenSlide itself with the reason."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmamil_sdk.errors import SlideFormatUnsupported
from cmamil_sdk.slides import open_slide

from .tiffs import only, picture, rgb, without, ycbcr

TABLES, JFIF, ADOBE = (0xC4, 0xDB), 0xE0, 0xEE
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


@dataclass(frozen=True)
class Layout:
    """How a slide is stored."""

    width: int
    height: int
    tile: tuple[int, int]
    downsamples: tuple[float, ...]
    coding: str
    photometric: str
    dropped: tuple[int, ...]
    shared_tables: bool
    claims_rgb: bool
    padded: bool
    fill_bytes: bool
    bigtiff: bool
    byteorder: str


def encode(layout: Layout, tile: np.ndarray) -> bytes:
    """One tile, coded as the layout says."""
    match layout.coding:
        case "rgb":
            coded = rgb(tile)
        case "progressive":
            coded = _with_pillow(tile, progressive=True)
        case "optimised":
            coded = _with_pillow(tile, optimize=True)
        case "restarts":
            coded = _with_pillow(tile, restart_marker_blocks=1)
        case subsampling:
            coded = ycbcr(subsampling)(tile)
    if layout.shared_tables:
        coded = without(coded, *TABLES)
    coded = without(coded, *layout.dropped)
    if layout.claims_rgb:
        coded = coded[:2] + ADOBE_RGB + coded[2:]
    if layout.fill_bytes:
        coded = coded[:2] + b"\xff" + coded[2:]
    return coded + b"\0" * (7 if layout.padded else 0)


def _with_pillow(tile: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(tile).save(out, "JPEG", quality=85, **options)
    return out.getvalue()


def write(layout: Layout, path: Path, seed: int) -> None:
    """Write the slide, finest level first."""
    tile_height, tile_width = layout.tile
    with tifffile.TiffWriter(path, bigtiff=layout.bigtiff, byteorder=layout.byteorder) as writer:
        for number, downsample in enumerate(layout.downsamples):
            height = max(1, int(layout.height / downsample))
            width = max(1, int(layout.width / downsample))
            pixels = picture(height, width, seed + number)
            padded = np.pad(
                pixels, ((0, -height % tile_height), (0, -width % tile_width), (0, 0)), mode="edge"
            )
            tiles = [
                encode(
                    layout, np.ascontiguousarray(padded[y : y + tile_height, x : x + tile_width])
                )
                for y in range(0, height, tile_height)
                for x in range(0, width, tile_width)
            ]
            extra = {}
            if layout.shared_tables:
                blank = np.zeros((*layout.tile, 3), np.uint8)
                plain = Layout(**{**vars(layout), "shared_tables": False, "fill_bytes": False})
                extra["jpegtables"] = only(encode(plain, blank).rstrip(b"\0"), *TABLES)
            writer.write(
                iter(tiles),
                shape=pixels.shape,
                dtype=np.uint8,
                photometric=layout.photometric,
                compression="jpeg",
                tile=layout.tile,
                subfiletype=1 if number else 0,
                metadata=None,
                **extra,
            )


LAYOUTS = st.builds(
    Layout,
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    tile=st.sampled_from([(16, 16), (32, 64), (64, 32), (48, 80), (16, 112)]),
    downsamples=st.sampled_from(
        [(1,), (1, 2), (1, 4, 2), (2, 1), (1, 2.3), (1, 3, 7.7), (1, 1.5, 4)]
    ),
    coding=st.sampled_from(
        ["444", "422", "420", "440", "411", "rgb", "progressive", "optimised", "restarts"]
    ),
    photometric=st.sampled_from(["rgb", "ycbcr"]),
    dropped=st.sampled_from([(), (JFIF, ADOBE), (JFIF,)]),
    shared_tables=st.booleans(),
    claims_rgb=st.booleans(),
    padded=st.booleans(),
    fill_bytes=st.booleans(),
    bigtiff=st.booleans(),
    byteorder=st.sampled_from("<>"),
)


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, seed=st.integers(0, 9))
def test_any_layout_is_read_as_openslide_does(tmp_path_factory, layout: Layout, seed: int) -> None:
    path = tmp_path_factory.mktemp("layout") / "any.tiff"
    write(layout, path, seed)
    try:
        theirs = open_slide(path, reader="openslide")
    except SlideFormatUnsupported:
        # OpenSlide knows no classic TIFF of this byte order, nor images that it cannot rank by width.
        first, *others = (max(1, int(layout.width / d)) for d in layout.downsamples)
        ranked = max(others, default=0) < first and len(set(others)) == len(others)
        assert layout.byteorder == ">" or not ranked
        return
    with theirs, open_slide(path) as ours:
        if ours.facts.reader == "openslide":
            assert ours.facts.reader_reason.startswith("not read directly, because ")
            return
        for number, level in enumerate(ours.facts.levels):
            w, h = level.width, level.height
            for box in ((-3, -2, w + 9, h + 5), (w // 2, h // 3, 17, 23), (w - 1, h - 1, 1, 1)):
                expected = theirs.read_region(number, *box)
                np.testing.assert_array_equal(
                    ours.read_region(number, *box), expected, repr(layout)
                )


def test_usual_layouts_are_read_directly(tmp_path: Path) -> None:
    """Else the property above would hold by always falling back."""
    for number, coding in enumerate(
        ("444", "422", "420", "440", "411", "rgb", "restarts", "optimised")
    ):
        for tile in ((16, 16), (48, 80)):
            layout = Layout(
                *(150, 100, tile, (1, 2), coding, "rgb" if coding == "rgb" else "ycbcr"),
                *((), False, False, False, False, bool(number % 2), "<>"[number % 2]),
            )
            path = tmp_path / f"{coding}-{tile[0]}.tiff"
            write(layout, path, 1)
            with open_slide(path) as reader:
                assert reader.facts.reader == "direct", reader.facts.reader_reason


def test_grey_and_progressive_tiles_say_why_they_are_not_read_directly(tmp_path: Path) -> None:
    layout = Layout(
        *(150, 100, (32, 64), (1,), "progressive", "ycbcr"),
        *((), False, False, False, False, False, "<"),
    )
    write(layout, tmp_path / "progressive.tiff", 1)
    with open_slide(tmp_path / "progressive.tiff") as reader:
        assert "OpenSlide reads something else in level 0" in reader.facts.reader_reason
        assert reader.read_region(0, 0, 0, 150, 100).std() > 5
