"""A slide file as the messages of an upload; nothing here connects."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import IO

from cmamil_sdk._client_results import UploadedSlide
from cmamil_sdk._proto.cmamil.v1 import slide_pb2
from cmamil_sdk.errors import SlideNotFound, SlideUnreadable
from cmamil_sdk.files import FileEntry
from cmamil_sdk.predict import ProgressEvent

UPLOAD = "/cmamil.v1.SlideService/UploadSlide"
_CHUNK_BYTES = 2**20
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)

OnProgress = Callable[[ProgressEvent], None]


class SlideFile:
    """A file to upload, read through once to know its hash.

    Raises:
        SlideNotFound: there is no such file.
        SlideUnreadable: the operating system refuses to read it.
    """

    def __init__(self, path: Path, on_progress: OnProgress | None) -> None:
        try:
            self._entry = FileEntry.of(path)
        except OSError as problem:
            if problem.errno in _ABSENT:
                raise SlideNotFound(f"There is no slide {path}; check the path.") from problem
            raise SlideUnreadable(
                f"{path} cannot be read ({problem.strerror}); change its permissions."
            ) from problem
        self._path = path
        self._report = on_progress or (lambda _event: None)

    def messages(self) -> Iterator[slide_pb2.UploadSlideRequest]:
        """All messages of one attempt; each chunk is reported when the next one may be sent."""
        yield self._metadata()
        with self._path.open("rb") as file:
            left = self._entry.size
            while left and (chunk := _read(file, left)):
                yield slide_pb2.UploadSlideRequest(chunk=chunk)
                left = self._sent(left, chunk)

    async def messages_on_a_loop(self) -> AsyncIterator[slide_pb2.UploadSlideRequest]:
        """The same, read in threads."""
        yield self._metadata()
        with self._path.open("rb") as file:
            left = self._entry.size
            while left and (chunk := await asyncio.to_thread(_read, file, left)):
                yield slide_pb2.UploadSlideRequest(chunk=chunk)
                left = self._sent(left, chunk)

    def _metadata(self) -> slide_pb2.UploadSlideRequest:
        # On disk a name may hold any bytes, in a message it is text.
        name = self._path.name.encode("utf-8", "replace").decode()
        metadata = slide_pb2.UploadMetadata(
            filename=name, size_bytes=self._entry.size, sha256=self._entry.sha256
        )
        return slide_pb2.UploadSlideRequest(metadata=metadata)

    def _sent(self, left: int, chunk: bytes) -> int:
        left -= len(chunk)
        self._report(ProgressEvent("upload", self._entry.size - left, self._entry.size))
        return left


def uploaded_from(message: slide_pb2.UploadSlideResponse) -> UploadedSlide:
    """What the server says of a slide that it has stored."""
    return UploadedSlide(message.slide_id, message.expire_time.ToDatetime(UTC))


def _read(file: IO[bytes], at_most: int) -> bytes:
    return file.read(min(at_most, _CHUNK_BYTES))


__all__ = ["UPLOAD", "OnProgress", "SlideFile", "uploaded_from"]
