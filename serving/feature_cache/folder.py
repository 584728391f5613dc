"""The folder of the cache: entries of whole slides, the one that was used last kept longest.

Nothing is locked: an entry appears and goes as a whole, so several servers may share a folder. When an
entry was last used is its file's time of change.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from pathlib import Path

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.features.extracted import ExtractedSlide

from ..logs import Event
from .entry import EntryDamaged, entry_bytes, read_entry, write_entry

LOG = logging.getLogger(__name__)

_SUFFIX, _TEMPORARY = ".features", ".tmp"
_ABANDONED_S = 3600.0
_SHOWN_DIGITS = 12


class CacheFolder:
    """Keeps at most ``max_bytes`` of entries; methods block, and may be called from threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Make the folder if it is not there, for this user alone.

        Raises:
            ConfigInvalid: it cannot be made or written to.
        """
        self._folder, self._max_bytes = folder, max_bytes
        self.bytes = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            self._make_room(0)
        except OSError as problem:
            raise ConfigInvalid(
                f"cache: {folder} cannot be written to ({problem.strerror}); name another folder, or "
                "change its permissions."
            ) from problem

    def find(self, key: str) -> ExtractedSlide | None:
        """The features under ``key``; None if there are none, or if they cannot be used any more."""
        path = self._path(key)
        try:
            found = read_entry(path, key)
        except FileNotFoundError:
            return None
        except EntryDamaged as problem:
            LOG.warning(Event("cache_damaged", entry=key[:_SHOWN_DIGITS], problem=str(problem)))
            self._drop(path)
            return None
        except OSError as problem:
            self._say("cache_unreadable", key, problem)
            return None
        with contextlib.suppress(
            OSError
        ):  # another user's, or just removed: read it is all the same
            os.utime(path)
        return found

    def keep(self, key: str, slide: ExtractedSlide) -> None:
        """Write the features of a slide, in place of those used longest ago; a failure is logged."""
        needed = entry_bytes(key, slide)
        if needed > self._max_bytes:
            entry = key[:_SHOWN_DIGITS]
            LOG.info(Event("cache_too_small", entry=entry, entry_bytes=needed))
            return
        try:
            self._make_room(needed)
            self.bytes += self._write(key, slide)
        except OSError as problem:
            self._say("cache_not_written", key, problem)

    def _write(self, key: str, slide: ExtractedSlide) -> int:
        """Length of the entry that was written."""
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=_TEMPORARY)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write_entry(file, key, slide)
                length = file.tell()
            temporary.replace(self._path(key))
        finally:
            temporary.unlink(missing_ok=True)
        return length

    def _make_room(self, needed: int) -> None:
        """Remove what was used longest ago until ``needed`` bytes fit, and what a crash left behind."""
        entries: list[tuple[int, int, Path]] = []
        now_s = time.time()
        with os.scandir(self._folder) as found:
            for file in found:
                try:
                    facts = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # another server's, or another thread's
                if file.name.endswith(_SUFFIX):
                    entries.append((facts.st_mtime_ns, facts.st_size, Path(file.path)))
                elif file.name.endswith(_TEMPORARY) and facts.st_mtime < now_s - _ABANDONED_S:
                    self._drop(Path(file.path))
        self.bytes = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if self.bytes + needed <= self._max_bytes:
                return
            self._drop(path)
            self.bytes -= size

    def _drop(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            self._say("cache_not_removed", path.name, problem)

    def _say(self, event: str, key: str, problem: OSError) -> None:
        entry = key[:_SHOWN_DIGITS]
        LOG.warning(Event(event, entry=entry, problem=problem.strerror or str(problem)))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


__all__ = ["CacheFolder"]
