"""The cache as the event loop sees it: its files are read and written in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmamil_sdk.features.extracted import ExtractedSlide

from .folder import CacheFolder


class FeatureCache:
    """Features by key; what goes wrong with the disk costs time and a line in the log, nothing else."""

    def __init__(self, folder: Path, max_bytes: int, on_look_up: Callable[[bool], None]) -> None:
        """Open a folder; ``on_look_up`` is called for each search: whether it found something.

        Raises:
            ConfigInvalid: the folder cannot be made or written to.
        """
        self._folder = CacheFolder(folder, max_bytes)
        self._on_look_up = on_look_up
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="cache-read")
        # One after the other: each makes room for its own.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache-write")

    @property
    def bytes(self) -> int:
        """Length of all entries, when they were last looked at."""
        return self._folder.bytes

    async def find(self, key: str) -> ExtractedSlide | None:
        """The features under ``key``, or None."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._readers, self._folder.find, key)
        self._on_look_up(found is not None)
        return found

    async def keep(self, key: str, slide: ExtractedSlide) -> None:
        """Write the features of a slide."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._folder.keep, key, slide)

    def close(self) -> None:
        """Drop what has not begun; a file being written becomes whole or is removed."""
        for threads in (self._readers, self._writer):
            threads.shutdown(wait=False, cancel_futures=True)


__all__ = ["FeatureCache"]
