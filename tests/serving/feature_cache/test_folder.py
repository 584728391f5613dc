"""The folder keeps what was used last within its limit, and survives what happens to disks."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.serving.feature_cache import folder as folder_module
from cmamil_sdk.serving.feature_cache.entry import entry_bytes
from cmamil_sdk.serving.feature_cache.folder import CacheFolder

from .slides import assert_same, extracted

KEYS = [f"{number:064x}" for number in range(4)]
SIZE = entry_bytes(KEYS[0], extracted())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keep_with_age(cache: CacheFolder, folder: Path, key: str, age_s: float) -> None:
    cache.keep(key, extracted())
    then = time.time() - age_s
    os.utime(folder / f"{key}.features", (then, then))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = CacheFolder(folder, 3 * SIZE)
    for age_s, key in zip((30, 20, 10), KEYS, strict=False):
        keep_with_age(cache, folder, key, age_s)
    found = cache.find(KEYS[0])
    assert found is not None
    assert_same(found, extracted())
    cache.keep(KEYS[3], extracted())
    assert names(folder) == [f"{key}.features" for key in (KEYS[0], KEYS[2], KEYS[3])]
    assert cache.bytes == 3 * SIZE
    assert cache.find(KEYS[1]) is None
    # A smaller limit counts from the start, and a restart forgets nothing else.
    again = CacheFolder(folder, SIZE)
    assert names(folder) == [f"{KEYS[3]}.features"] and again.bytes == SIZE
    assert again.find(KEYS[3]) is not None
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


def test_an_entry_above_the_limit_displaces_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheFolder(tmp_path, SIZE)
    cache.keep(KEYS[0], extracted())
    with caplog.at_level("INFO", logger="cmamil_sdk"):
        cache.keep(KEYS[1], extracted(tiles=8))
    assert "cache_too_small" in caplog.text
    assert names(tmp_path) == [f"{KEYS[0]}.features"]


def test_a_damaged_entry_is_dropped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CacheFolder(tmp_path, 10 * SIZE)
    cache.keep(KEYS[0], extracted())
    path = tmp_path / f"{KEYS[0]}.features"
    path.write_bytes(path.read_bytes()[:-7])
    assert cache.find(KEYS[0]) is None
    assert "cache_damaged" in caplog.text and not path.exists()


def test_a_full_disk_is_logged_and_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object, *_: object) -> None:
        file.write(b"some")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = CacheFolder(tmp_path, 10 * SIZE)
    monkeypatch.setattr(folder_module, "write_entry", fail)
    cache.keep(KEYS[0], extracted())
    assert "cache_not_written" in caplog.text and "No space left" in caplog.text
    assert names(tmp_path) == []


def test_what_a_crash_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    old, new = tmp_path / ".old.tmp", tmp_path / ".new.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    CacheFolder(tmp_path, SIZE)
    assert names(tmp_path) == [".new.tmp"]


def test_two_caches_share_a_folder(tmp_path: Path) -> None:
    one, other = CacheFolder(tmp_path, 2 * SIZE), CacheFolder(tmp_path, 2 * SIZE)
    one.keep(KEYS[0], extracted())
    other.keep(KEYS[0], extracted())
    (tmp_path / f"{KEYS[0]}.features").unlink()  # as by the other's eviction
    assert one.find(KEYS[0]) is None
    other.keep(KEYS[1], extracted(1))
    found = one.find(KEYS[1])
    assert found is not None
    assert_same(found, extracted(1))


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match="cache"):
        CacheFolder(tmp_path / "file", SIZE)
