"""JPEG has no checksum: which share of flipped bits either reader notices, and what the others do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides import open_slide

from ..slides.tiffs import spoil_tile
from .conftest import READERS
from .files import EDGE_PX, TILE_PX, write_intact
from .table import check_section

ROUNDS = 8


def flip_a_bit(tile: bytes, rng: np.random.Generator) -> bytes:
    """One bit of the coded pixels the other way round."""
    scan = tile.index(b"\xff\xda") + 14
    place = int(rng.integers(scan, len(tile) - 2))
    return tile[:place] + bytes([tile[place] ^ 1 << int(rng.integers(8))]) + tile[place + 1 :]


def test_flipped_bits_are_noticed_or_change_little(tmp_path: Path) -> None:
    """Every tile of the slide gets one flipped bit, in several rounds."""
    slide = write_intact(tmp_path / "intact.svs")
    columns = EDGE_PX // TILE_PX
    boxes = [
        (number % columns * TILE_PX, number // columns * TILE_PX, TILE_PX, TILE_PX)
        for number in range(columns * columns)
    ]
    with open_slide(slide, reader="openslide") as reader:
        intact = [reader.read_region(0, *box).astype(int) for box in boxes]
    noticed = dict.fromkeys(READERS, 0)
    differences: dict[str, list[float]] = {reader: [] for reader in READERS}
    for turn in range(ROUNDS):
        rng = np.random.default_rng(turn)
        path = write_intact(tmp_path / f"flipped-{turn}.svs")
        # Opened before, since it would refuse at once; it reads every tile anew.
        with open_slide(path, reader="direct") as direct:
            for number in range(len(boxes)):
                spoil_tile(path, number, lambda tile, rng=rng: flip_a_bit(tile, rng))
            with open_slide(path, reader="openslide") as openslide:
                for reader, opened in zip(READERS, (direct, openslide), strict=True):
                    for box, expected in zip(boxes, intact, strict=True):
                        try:
                            got = opened.read_region(0, *box)
                        except SlideCorrupt:
                            noticed[reader] += 1
                        else:
                            differences[reader].append(float(np.abs(got - expected).mean()))
    total = ROUNDS * len(boxes)
    lines = [
        "| reader | bits flipped, one a tile | tiles refused | not noticed: changed by less than 1 grey "
        "level on average | by 1 to 10 | by more |",
        "|---|---|---|---|---|---|",
    ]
    for reader, found in differences.items():
        assert noticed[reader] + len(found) == total
        small, large = sum(d < 1 for d in found), sum(d > 10 for d in found)
        counts = (total, noticed[reader], small, len(found) - small - large, large)
        lines.append(f"| {reader} | {' | '.join(map(str, counts))} |")
    assert noticed["direct"] >= noticed["openslide"], "the direct reader takes warnings for errors"
    check_section("flipped bits", lines)
