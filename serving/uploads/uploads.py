"""Uploaded slides: who may send how much, whose they are, and when they go.

A slide's id is its sha256, so the same bytes are stored once however often they are sent. Each token
that sends them is an owner, with a file name of its own for them; the last owner that deletes the slide
removes it. Who knows the id may use the slide, which nobody guesses who has not seen it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cmamil_sdk.errors import (
    ServerDraining,
    SlideHashMismatch,
    SlideNotFound,
    SlideTooLarge,
    UploadIncomplete,
    UploadsDisabled,
    UploadsFull,
)

from ..admission import Deadlines
from ..config import ServerConfig
from ..paths import SlideRef, resolve
from ..status import FieldProblem, RequestInvalid
from ..tokens import Caller
from .folder import Part, UploadFolder, UploadRecord, slide_name

LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
_LOOK_EVERY_S = 60.0


@dataclass(frozen=True)
class Upload:
    """What a client says it will send: a label, the size, and the sha256 in lower case."""

    filename: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """An uploaded slide, and when it expires, seconds since 1970."""

    slide_id: str
    expires_s: float


@dataclass
class _Stored:
    """A slide in the folder; one that was deleted only waits for its last use to end."""

    record: UploadRecord
    uses: int = 0
    deleted: bool = False


class Uploads:
    """The uploaded slides of one server; use it from its event loop only."""

    def __init__(self, config: ServerConfig) -> None:
        self._folder = None if config.uploads is None else UploadFolder(config.uploads)
        self._max_bytes = config.max_upload_bytes
        self._total_bytes = config.uploads_total_bytes
        self._expiry_s = config.upload_expiry_s
        self._stored: dict[str, _Stored] = {}
        self.arriving = self.arriving_bytes = 0
        """Uploads on their way, and the bytes that were announced of them."""
        self.draining = False
        """Whether uploads are taken no more; those on their way go on."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._lock = asyncio.Lock()  # of the folder's slides, while they come and go
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="upload")
        self._background: set[asyncio.Task[Any]] = set()
        self._expiring: asyncio.Task[None] | None = None
        self.deadlines = Deadlines(config.max_deadline_s, config.max_deadline_s)

    async def open(self) -> None:
        """Take the folder, where there is one, and begin to watch for what expires.

        Raises:
            ConfigInvalid: as :meth:`UploadFolder.open`.
        """
        if self._folder is not None:
            records = await self._run(self._folder.open)
            self._stored = {slide_id: _Stored(record) for slide_id, record in records.items()}
            self._expiring = asyncio.create_task(self._expire_for_ever())

    async def close(self) -> None:
        """Finish what was begun and leave the folder; no upload may be on its way."""
        if self._expiring is not None:
            self._expiring.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        if self._folder is not None:
            await asyncio.to_thread(self._folder.close)

    @property
    def stored(self) -> tuple[int, int]:
        """Slides that are there, and their bytes."""
        return len(self._stored), sum(each.record.size_bytes for each in self._stored.values())

    async def idle(self) -> None:
        """Wait until no upload is on its way."""
        await self._idle.wait()

    async def receive(self, upload: Upload, chunks: AsyncIterable[bytes], owner: str) -> Receipt:
        """Store a slide; on any error, and when cancelled, nothing of it is left.

        Raises:
            UploadsDisabled: the server has no folder for uploads.
            ServerDraining: the server takes no more.
            SlideTooLarge, UploadsFull: there is no room for it.
            RequestInvalid: there are more bytes than announced.
            UploadIncomplete: there are fewer.
            SlideHashMismatch: they are others.
        """
        folder = self._enabled()
        if self.draining:
            raise ServerDraining("The server is shutting down; ask another, or later.")
        renewed = await self._in_background(self._renew(upload, owner))
        if renewed is not None:
            return renewed
        self._take_room(upload.size_bytes)
        part = Part(folder.path)
        try:
            await self._check_disk(folder, upload.size_bytes)
            await self._fill(part, upload, chunks)
        except BaseException:
            self._leave_room(upload.size_bytes)
            self._threads.submit(part.discard)
            raise
        # All is there: whether the client still waits for the answer no longer matters.
        return await self._in_background(self._publish(part, upload, owner))

    async def delete(self, slide_id: str, caller: Caller) -> None:
        """Remove a slide for its owner ``caller``, or for all if that is an administrator.

        Raises:
            UploadsDisabled: the server has no folder for uploads.
            SlideNotFound: the caller has no such slide.
        """
        self._enabled()
        await self._in_background(self._delete(slide_id, caller))

    @asynccontextmanager
    async def using(self, slide_id: str, owner: str) -> AsyncIterator[SlideRef]:
        """The file of a slide, which stays until the block ends, under the name that ``owner`` gave.

        Raises:
            UploadsDisabled: the server has no folder for uploads.
            SlideNotFound: there is no such slide, or no longer.
        """
        folder = self._enabled()
        stored = self._known(slide_id)
        stored.uses += 1
        try:
            ref = await self._run(resolve, slide_name(slide_id), [folder.path])
            yield replace(ref, label=stored.record.labels.get(owner, _everybodys_label(ref)))
        finally:
            stored.uses -= 1
            if stored.deleted and not stored.uses:
                self._spawn(self._remove_deleted(slide_id))

    def _enabled(self) -> UploadFolder:
        if self._folder is None:
            raise UploadsDisabled(
                "This server takes no uploads; start it with `uploads`, a folder for them, or name "
                "a slide beneath its slides roots."
            )
        return self._folder

    def _take_room(self, size_bytes: int) -> None:
        """Count an upload, before anything is waited for: others come meanwhile."""
        if size_bytes > self._max_bytes:
            raise SlideTooLarge(
                f"The slide has {size_bytes} bytes, this server takes uploads of at most "
                f"{self._max_bytes}; raise its max_upload_bytes."
            )
        held = self._held_bytes()
        if held + size_bytes > self._total_bytes:
            raise UploadsFull(
                f"The server holds {held} bytes of uploaded slides and has no room for "
                f"{size_bytes} more; delete some, or raise its uploads_total_bytes."
            )
        self.arriving += 1
        self.arriving_bytes += size_bytes
        self._idle.clear()

    def _leave_room(self, size_bytes: int) -> None:
        self.arriving -= 1
        self.arriving_bytes -= size_bytes
        if not self.arriving:
            self._idle.set()

    async def _check_disk(self, folder: UploadFolder, size_bytes: int) -> None:
        free = await self._run(folder.free_bytes)
        if size_bytes > free:
            raise UploadsFull(
                f"The server's disk has {free} bytes free, the slide has {size_bytes}; delete "
                "uploaded slides, or ask who runs the server for room."
            )

    def _held_bytes(self) -> int:
        return self.stored[1] + self.arriving_bytes

    def _known(self, slide_id: str) -> _Stored:
        stored = self._stored.get(slide_id)
        if stored is None or stored.deleted:
            raise _absent(slide_id)
        return stored

    async def _fill(self, part: Part, upload: Upload, chunks: AsyncIterable[bytes]) -> None:
        received = 0
        async for chunk in chunks:
            received += len(chunk)
            if received > upload.size_bytes:
                problem = f"goes beyond the {upload.size_bytes} bytes of metadata.size_bytes"
                raise RequestInvalid([FieldProblem("chunk", problem)])
            await self._run(part.write, chunk)
        if received < upload.size_bytes:
            raise UploadIncomplete(
                f"The upload ended after {received} of {upload.size_bytes} bytes; send it again."
            )
        found = await self._run(part.finish)
        if found != upload.sha256:
            raise SlideHashMismatch(
                f"The bytes that came have sha256 {found}, {upload.sha256} was announced; send the "
                "slide again."
            )

    async def _renew(self, upload: Upload, owner: str) -> Receipt | None:
        """Note that an owner sends a slide once more, without its bytes; None if it is not there."""
        async with self._lock:
            stored = self._stored.get(upload.sha256)
            if stored is None or stored.deleted or owner not in stored.record.labels:
                return None
            if stored.record.size_bytes != upload.size_bytes:
                return None
            return await self._record(upload, owner)

    async def _publish(self, part: Part, upload: Upload, owner: str) -> Receipt:
        async with self._lock:
            try:
                return await self._record(upload, owner, part)
            finally:
                await self._run(part.discard)
                self._leave_room(upload.size_bytes)

    async def _record(self, upload: Upload, owner: str, part: Part | None = None) -> Receipt:
        """Note an owner of a slide; where the folder has not got it yet it is ``part``."""
        folder, slide_id, now_s = self._enabled(), upload.sha256, time.time()
        stored = self._stored.get(slide_id)
        labels = {} if stored is None or stored.deleted else stored.record.labels
        record = UploadRecord(
            size_bytes=upload.size_bytes,
            uploaded_s=now_s,
            labels={**labels, owner: upload.filename},
        )
        if stored is None:
            assert part is not None
            await self._run(folder.publish, part, slide_id, record)
            self._stored[slide_id] = _Stored(record)
        else:
            await self._run(folder.write, slide_id, record)
            stored.record, stored.deleted = record, False
        return Receipt(slide_id, now_s + self._expiry_s)

    async def _delete(self, slide_id: str, caller: Caller) -> None:
        async with self._lock:
            stored, everywhere = self._known(slide_id), "admin" in caller.roles
            if caller.name not in stored.record.labels and not everywhere:
                raise _absent(slide_id)
            labels = {k: v for k, v in stored.record.labels.items() if k != caller.name}
            if labels and not everywhere:
                record = stored.record.model_copy(update={"labels": labels})
                await self._run(self._enabled().write, slide_id, record)
                stored.record = record
            else:
                await self._drop(slide_id, stored)

    async def _drop(self, slide_id: str, stored: _Stored) -> None:
        """Remove a slide now, or, where it is in use, have its last use do it."""
        folder = self._enabled()
        stored.deleted = True
        await self._run(folder.forget, slide_id)
        if not stored.uses:
            await self._run(folder.remove, slide_id)
            del self._stored[slide_id]

    async def _remove_deleted(self, slide_id: str) -> None:
        async with self._lock:
            stored = self._stored.get(slide_id)
            # Meanwhile it may have been uploaded again.
            if stored is not None and stored.deleted and not stored.uses:
                await self._drop(slide_id, stored)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._expiry_s / 4))
            self._spawn(self._expire())

    async def _expire(self) -> None:
        async with self._lock:
            oldest_s = time.time() - self._expiry_s
            for slide_id, stored in list(self._stored.items()):
                expired = stored.record.uploaded_s <= oldest_s
                if expired and not stored.uses and not stored.deleted:
                    await self._drop(slide_id, stored)

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _in_background(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Finish ``work`` whatever becomes of who waits for it: files and their records stay one."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(problem := task.exception(), OSError):
            LOG.error("the folder of uploads cannot be changed: %s", problem)


def unowned(ref: SlideRef) -> SlideRef:
    """An uploaded slide under the name that everybody may see; others as they are."""
    return replace(ref, label=_everybodys_label(ref)) if ref.label else ref


def _everybodys_label(ref: SlideRef) -> str:
    return f"upload-{ref.parts[-1][:12]}"


def _absent(slide_id: str) -> SlideNotFound:
    return SlideNotFound(f"There is no uploaded slide {slide_id[:12]}…; upload it.")


__all__ = ["Receipt", "Upload", "Uploads", "unowned"]
