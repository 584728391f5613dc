"""One JPEG tile: the pixels libjpeg makes of it, and an error for everything it only warns of."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs import jpeg8_decode, jpeg8_encode

from cmamil_sdk.slides.jpeg_tiles import DamagedTile, decode_tile, tile_prefix

from .tiffs import only, picture, rgb, segments, without, ycbcr

PIXELS = picture(48, 64)
JFIF, ADOBE, TABLES = 0xE0, 0xEE, (0xC4, 0xDB)


def adobe(transform: int) -> bytes:
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def decode(tile: bytes, tables: bytes | None = None, *, is_ycbcr: bool = True) -> np.ndarray:
    return decode_tile(tile, tile_prefix(tables, ycbcr=is_ycbcr), 64, 48)


def frame_of(tile: bytes, height: int, width: int, components: int = 3, bits: int = 8) -> bytes:
    """The tile with another size in its frame."""
    start = tile.index(b"\xff\xc0") + 4
    size = bytes([bits]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return tile[:start] + size + bytes([components]) + tile[start + 6 :]


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
def test_ycbcr_in_every_subsampling_is_what_libjpeg_decodes(subsampling: str) -> None:
    tile = ycbcr(subsampling)(PIXELS)
    expected = jpeg8_decode(tile, colorspace="YCBCR", outcolorspace="RGB")
    assert (decode(tile) == expected).all()


@pytest.mark.parametrize("said", [b"", adobe(0), adobe(1)])
@pytest.mark.parametrize("encode", [rgb, ycbcr()])
@pytest.mark.parametrize("is_ycbcr", [True, False])
def test_only_the_photometric_tag_says_what_the_colours_are(said, encode, is_ycbcr) -> None:
    tile = without(encode(PIXELS), JFIF, ADOBE)
    expected = jpeg8_decode(tile, colorspace="YCBCR" if is_ycbcr else "RGB", outcolorspace="RGB")
    told = tile[:2] + said + tile[2:]
    assert (decode(told, is_ycbcr=is_ycbcr) == expected).all()
    assert (decode(encode(PIXELS), is_ycbcr=is_ycbcr) == expected).all()


def test_tables_come_from_the_directory() -> None:
    whole = ycbcr()(PIXELS)
    bare, tables = without(whole, *TABLES), only(whole, *TABLES)
    assert (decode(bare, tables) == decode(whole)).all()
    with pytest.raises(DamagedTile, match="table"):
        decode(bare)


def test_fill_bytes_before_a_segment_are_allowed() -> None:
    tile = ycbcr()(PIXELS)
    filled = b"\xff\xd8" + b"".join(b"\xff\xff" + body for _, body in segments(tile))
    assert (decode(filled) == decode(tile)).all()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (b"", "does not start"),
        (b"\xff\xd8\xff\xd9", None),
        (b"\xff\xd8", "within its header"),
        (only(ycbcr()(PIXELS), *TABLES)[:-2], "within its header"),
        (ycbcr()(PIXELS), "segment 0xc0"),  # an image here would be decoded instead of the tile
    ],
)
def test_tables_that_are_none(tables: bytes, message: str | None) -> None:
    if message is None:
        assert tile_prefix(tables, ycbcr=True) == tile_prefix(None, ycbcr=True)
        return
    with pytest.raises(DamagedTile, match=message):
        tile_prefix(tables, ycbcr=True)


def spoilt() -> dict[str, tuple[bytes, str]]:
    good = ycbcr()(PIXELS)
    scan = good.index(b"\xff\xda")
    half = scan + (len(good) - scan) // 2
    tail = len(good) - half
    return {
        "empty": (b"", "does not start"),
        "zeros": (bytes(len(good)), "does not start"),
        "no start": (good[2:], "does not start"),
        "no end": (good[:-2], "Premature end"),
        "end overwritten": (good[:-2] + b"\0\0", "Premature end"),
        "cut in the header": (good[:100], "within its header"),
        "cut in the scan": (good[:half], "Premature end"),
        "second half zeros": (good[:half] + bytes(tail), "Premature end"),
        "second half 0xff": (good[:half] + b"\xff" * tail, "Premature end"),
        "ended early": (good[:half] + b"\xff\xd9" + good[half:], "premature end"),
        "bytes too many": (good[:-2] + b"\x55" * 40 + b"\xff\xd9", "extraneous"),
        "no frame": (without(good, 0xC0), "no sequential"),
        "garbage between": (good[:2] + b"\0" + good[2:], "between its segments"),
        "a length of nothing": (b"\xff\xd8\xff\xe1\0\1" + good[2:], "within its header"),
        "no scan": (good[:scan] + b"\xff\xd9", "within its header"),
        "wider": (frame_of(good, 48, 80), "80 x 48 pixels .* instead of 64 x 48"),
        "higher": (frame_of(good, 64, 64), "64 x 64 pixels"),
        "one component": (encode_grey(), "1 components"),
        "12 bits": (frame_of(good, 48, 64, bits=12), "12 bits"),
        "a bomb": (frame_of(good, 65500, 65500), "65500 x 65500 pixels"),
        "progressive": (good.replace(b"\xff\xc0", b"\xff\xc2", 1), "no sequential"),
        "a scan of one component": (good[: scan + 4] + b"\x01" + good[scan + 5 :], "one scan"),
    }


def encode_grey() -> bytes:
    return bytes(jpeg8_encode(PIXELS[..., 0].copy(), level=85))


@pytest.mark.parametrize("what", spoilt())
def test_damage_is_an_error_that_says_what(what: str) -> None:
    tile, message = spoilt()[what]
    with pytest.raises(DamagedTile, match=message):
        decode(tile)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_this_error_or_an_image_of_the_size(data) -> None:
    good = ycbcr()(PIXELS)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = good[:place] + data.draw(st.binary(max_size=20)) + good[place + 5 :]
    with suppress(DamagedTile):
        assert decode(bad).shape == (48, 64, 3)
