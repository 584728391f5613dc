"""The messages of an upload: what will come, then its bytes."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncIterator

from cmamil_sdk._proto.cmamil.v1 import slide_pb2
from cmamil_sdk.errors import DeadlineExceeded

from ..requests import check_slide_id, parse
from ..status import FieldProblem, RequestInvalid
from .uploads import Upload

MAX_CHUNK_BYTES = 2**20
_MESSAGE_BYTES = MAX_CHUNK_BYTES + 1024  # a chunk that is a little too long is still called one
_MAX_NAME_CHARACTERS = 255


class UploadRequest:
    """Reads the messages of one call, of which none may be longer than ``idle_s`` in coming."""

    def __init__(self, messages: AsyncIterator[bytes], idle_s: float) -> None:
        self._messages, self._idle_s = messages, idle_s

    async def metadata(self) -> Upload:
        """What will come; call it first.

        Raises:
            RequestInvalid: there is none, or a field is wrong; all of those are named.
            FieldInvalid, MessageTooLarge: it is no message of this method.
            DeadlineExceeded: the client is silent.
        """
        message = await self._next()
        if message is None or message.WhichOneof("part") != "metadata":
            raise RequestInvalid([FieldProblem("metadata", "must be the first message")])
        metadata = message.metadata
        sha256 = metadata.sha256.lower()
        problems = check_slide_id(sha256, "metadata.sha256")
        if metadata.size_bytes < 1:
            problems.append(FieldProblem("metadata.size_bytes", "must be the file's size, from 1"))
        if not _is_file_name(metadata.filename):
            what = (
                f"must be a file name of at most {_MAX_NAME_CHARACTERS} characters, without a path"
            )
            problems.append(FieldProblem("metadata.filename", what))
        if problems:
            raise RequestInvalid(problems)
        return Upload(metadata.filename, metadata.size_bytes, sha256)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, as they come; errors as :meth:`metadata`."""
        while (message := await self._next()) is not None:
            if not (
                message.WhichOneof("part") == "chunk" and 1 <= len(message.chunk) <= MAX_CHUNK_BYTES
            ):
                what = (
                    f"must have from 1 to {MAX_CHUNK_BYTES} bytes in each message after the first"
                )
                raise RequestInvalid([FieldProblem("chunk", what)])
            yield message.chunk

    async def _next(self) -> slide_pb2.UploadSlideRequest | None:
        """The next message, None after the last."""
        try:
            async with asyncio.timeout(self._idle_s):
                data = await anext(self._messages, None)
        except TimeoutError as problem:
            raise DeadlineExceeded(
                f"The client of this upload was silent for {self._idle_s:g} s; send it again."
            ) from problem
        if data is None:
            return None
        return parse(slide_pb2.UploadSlideRequest, data, _MESSAGE_BYTES)


def _is_file_name(text: str) -> bool:
    if not 1 <= len(text) <= _MAX_NAME_CHARACTERS or text in (".", ".."):
        return False
    return not any(c in "/\\" or unicodedata.category(c).startswith("C") for c in text)


__all__ = ["MAX_CHUNK_BYTES", "UploadRequest"]
