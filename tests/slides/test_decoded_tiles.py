"""Decoded tiles are kept up to a size, the latest of them, and nobody may change them."""

from __future__ import annotations

import numpy as np
import pytest

from cmamil_sdk.slides.decoded_tiles import DecodedTiles


def tile(value: int) -> np.ndarray:
    return np.full((2, 5), value, np.uint8)


def test_what_was_not_asked_for_longest_goes_first() -> None:
    tiles = DecodedTiles(max_bytes=30)
    for number in range(3):
        tiles.put((0, number), tile(number))
    assert tiles.get((0, 0)) is not None  # 1 is now the one that waited longest
    tiles.put((1, 0), tile(9))
    assert [tiles.get((0, n)) is not None for n in range(3)] == [True, False, True]
    kept = tiles.get((1, 0))
    assert kept is not None and (kept == 9).all()


def test_a_tile_that_is_there_is_not_counted_twice() -> None:
    tiles = DecodedTiles(max_bytes=20)
    tiles.put((0, 0), tile(1))
    tiles.put((0, 0), tile(1))
    tiles.put((0, 1), tile(2))
    assert tiles.get((0, 0)) is not None and tiles.get((0, 1)) is not None


def test_a_tile_without_room_is_not_kept() -> None:
    tiles = DecodedTiles(max_bytes=9)
    tiles.put((0, 0), tile(1))
    assert tiles.get((0, 0)) is None


def test_a_kept_tile_cannot_be_written_to() -> None:
    tiles = DecodedTiles()
    tiles.put((0, 0), tile(1))
    kept = tiles.get((0, 0))
    assert kept is not None
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 0
