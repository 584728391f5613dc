"""Whether a JPEG 2000 codestream is whole, told without decoding it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecodecs import jpeg2k_encode

from cmamil_sdk.slides.jp2k_tiles import check_codestream
from cmamil_sdk.slides.jpeg_tiles import DamagedTile

from .tiffs import jpeg_2000, picture

TILE = jpeg_2000(picture(64, 48))


def encoded(**options) -> bytes:
    return bytes(jpeg2k_encode(picture(64, 48), codecformat="j2k", **options))


def in_parts() -> bytes:
    """The tile's coded bytes in two tile-parts."""
    start, data = TILE.index(b"\xff\x90"), TILE.index(b"\xff\x93") + 2
    half = (data + len(TILE)) // 2
    parts = (TILE[data:half], TILE[half:-2])
    made = [
        struct.pack(">HHHIBB", 0xFF90, 10, 0, 14 + len(part), number, 2) + b"\xff\x93" + part
        for number, part in enumerate(parts)
    ]
    return TILE[:start] + b"".join(made) + b"\xff\xd9"


def of_open_length() -> bytes:
    """Its only tile-part does not say how long it is."""
    start = TILE.index(b"\xff\x90")
    return TILE[: start + 6] + bytes(4) + TILE[start + 10 :]


@pytest.mark.parametrize(
    "tile",
    [
        TILE,
        TILE + b"\0",
        encoded(reversible=True),
        encoded(level=20, resolutions=2),
        in_parts(),
        of_open_length(),
    ],
    ids=["Aperio's", "padded", "reversible", "two resolutions", "two parts", "open length"],
)
def test_whole_codestreams_pass(tile):
    check_codestream(tile, 48, 64)


@pytest.mark.realdata
def test_every_tile_of_a_real_slide_passes(real_data):
    path = real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    raw = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if page.is_tiled]
    for page in pages:
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            check_codestream(raw[offset : offset + size], 256, 256)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (b"", "does not start"),
        (bytes(len(TILE)), "does not start"),
        (TILE[:2], "too early"),
        (TILE[:-2] + b"\0\0", "too early|beyond its end"),
        (TILE[: len(TILE) // 2], "beyond its end"),
        (TILE[: len(TILE) // 2] + bytes(len(TILE) - len(TILE) // 2), "too early|beyond its end"),
        (TILE[:-60] + b"\xff\xff" + TILE[-58:], "overwritten"),
        (TILE[:8] + b"\xff\xff" + TILE[10:], "4294901.* x 64 pixels of 3 components instead of 48"),
        (TILE[:42] + b"\x0b" + TILE[43:], "do not have 8 bits"),
        (TILE[:51] + bytes(30) + TILE[81:], "header is damaged"),
        (TILE + b"more", "goes on after its end"),
    ],
)
def test_damage_is_named(spoilt, words):
    with pytest.raises(DamagedTile, match=words):
        check_codestream(spoilt, 48, 64)


def test_another_size_is_refused():
    with pytest.raises(DamagedTile, match="48 x 64 pixels of 3 components instead of 64 x 64"):
        check_codestream(TILE, 64, 64)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_overwritten_the_answer_is_damage_or_none(data):
    start = data.draw(st.integers(0, len(TILE) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    spoilt = (TILE[:start] + noise + TILE[start + len(noise) :])[: len(TILE)]
    cut = data.draw(st.integers(0, len(spoilt)))
    for candidate in (spoilt, TILE[:cut]):
        try:
            check_codestream(candidate, 48, 64)
        except DamagedTile:
            continue
        assert candidate.startswith(b"\xff\x4f")
        assert candidate.rstrip(b"\0").endswith(b"\xff\xd9")


def test_random_bytes_among_the_coded_ones_are_nearly_always_seen():
    large = jpeg_2000(picture(256, 256))
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(50):
        try:
            check_codestream(large[:2000] + rng.bytes(2048) + large[4048:], 256, 256)
        except DamagedTile:
            seen += 1
    assert seen >= 40
