"""sha256 of slides, in threads, remembered while the file stays the same."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from cmamil_sdk.errors import SlideUnreadable

from .paths import FileIdentity, SlideRef, open_slide_file
from .single_flight import SingleFlight

_CHUNK_BYTES = 4 * 2**20
_REMEMBERED = 4096


class SlideHasher:
    """Hashes slides two at a time, each once for all who ask; cancelled within one chunk."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="slide-hash")
        self._known: OrderedDict[FileIdentity, str] = OrderedDict()
        self._flights = SingleFlight[SlideRef, str, None]()

    def knows(self, ref: SlideRef) -> bool:
        """Whether the sha256 is known without reading the slide."""
        return ref.identity in self._known

    async def sha256(self, ref: SlideRef) -> str:
        """sha256 of the slide's bytes, in hexadecimal.

        Raises:
            SlideCorrupt: the file is no longer the one that was found.
            SlideUriForbidden, SlideNotFound, SlideUnreadable: likewise.
        """
        if self.knows(ref):
            self._known.move_to_end(ref.identity)
            return self._known[ref.identity]
        return await self._flights.share(ref, lambda _tell: self._hash(ref))

    async def _hash(self, ref: SlideRef) -> str:
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            digest = await loop.run_in_executor(self._threads, _hash, ref, cancelled)
        finally:
            cancelled.set()
        self.remember(ref, digest)
        return digest

    def remember(self, ref: SlideRef, digest: str) -> None:
        """Take ``digest`` for the slide's from now on."""
        self._known[ref.identity] = digest
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def close(self) -> None:
        """Drop what has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _hash(ref: SlideRef, cancelled: threading.Event) -> str:
    digest = hashlib.sha256()
    with os.fdopen(open_slide_file(ref), "rb", buffering=0) as file:
        try:
            while not cancelled.is_set() and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
        except OSError as problem:  # a share that went away
            raise SlideUnreadable(
                f"{ref.shown} cannot be read ({problem.strerror}); check the disk that it lies on."
            ) from problem
        ref.check_unchanged(file.fileno())
    return digest.hexdigest()


__all__ = ["SlideHasher"]
