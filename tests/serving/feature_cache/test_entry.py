"""An entry comes back to the last bit, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.serving.feature_cache.entry import (
    EntryDamaged,
    entry_bytes,
    read_entry,
    write_entry,
)

from .slides import assert_same, extracted

KEY = "ab" * 32


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "entry"
    with path.open("wb") as file:
        write_entry(file, KEY, extracted())
    return path


def test_an_entry_comes_back_to_the_last_bit(entry: Path) -> None:
    found = read_entry(entry, KEY)
    assert_same(found, extracted())
    found.bag.validate()
    assert entry.stat().st_size == entry_bytes(KEY, extracted())
    assert all(array.flags.aligned for array in found.bag.features.values())


def test_any_change_is_noticed(entry: Path) -> None:
    whole = entry.read_bytes()
    for place in (0, 9, 40, len(whole) // 2, len(whole) - 33, len(whole) - 1):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(EntryDamaged, match="checksum"):
            read_entry(entry, KEY)
    for damaged in (b"", b"short", whole[:-1], whole + b"x", whole[: len(whole) // 2]):
        entry.write_bytes(damaged)
        with pytest.raises(EntryDamaged):
            read_entry(entry, KEY)


def test_an_entry_under_another_name_is_refused(entry: Path) -> None:
    with pytest.raises(EntryDamaged, match="another name"):
        read_entry(entry, "cd" * 32)
