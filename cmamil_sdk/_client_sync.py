"""How the synchronous client asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from cmamil_sdk._client_base import BaseClient
from cmamil_sdk._client_calls import Question, Stream, no_result
from cmamil_sdk._client_errors import Refusal
from cmamil_sdk._client_results import UploadedSlide
from cmamil_sdk._client_retries import Retries
from cmamil_sdk._client_uploads import UPLOAD, SlideFile, uploaded_from
from cmamil_sdk._proto.cmamil.v1 import slide_pb2

_T = TypeVar("_T")


class SyncCalls(BaseClient):
    """A channel, and every kind of call on it."""

    def _open(self) -> None:
        self._channel = self._connection.channel(self._credentials)

    def close(self) -> None:
        """Close the connection; calls in flight end."""
        self._channel.close()

    def __enter__(self) -> Self:
        """The client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def _ask(self, question: Question[_T]) -> _T:
        method = self._channel.unary_unary(
            question.method,
            request_serializer=type(question.message).SerializeToString,
            response_deserializer=question.answer.FromString,
        )

        def attempt(left_s: float) -> _T:
            metadata = self._connection.metadata
            try:
                reply: Any = method(question.message, timeout=left_s, metadata=metadata)
            except grpc.RpcError as problem:
                raise self._refusal(problem) from problem
            return question.read(reply)

        seconds = self.timeout_s if question.timeout_s is None else question.timeout_s
        return self._retried(attempt, Retries(seconds, retried=question.retried))

    def _stream(self, stream: Stream[_T], timeout_s: float) -> _T:
        method = self._channel.unary_stream(
            stream.method,
            request_serializer=type(stream.message).SerializeToString,
            response_deserializer=stream.answer.FromString,
        )
        call = method(stream.message, timeout=timeout_s, metadata=self._connection.metadata)
        try:
            for event in call:
                result = stream.read(event)
                if result is not None:
                    return result
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem
        finally:
            call.cancel()
        raise no_result(self.server)

    def _upload(self, file: SlideFile, timeout_s: float) -> UploadedSlide:
        method = self._channel.stream_unary(
            UPLOAD,
            request_serializer=slide_pb2.UploadSlideRequest.SerializeToString,
            response_deserializer=slide_pb2.UploadSlideResponse.FromString,
        )
        metadata = self._connection.metadata
        try:
            return uploaded_from(method(file.messages(), timeout=timeout_s, metadata=metadata))
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem

    def _retried(self, attempt: Callable[[float], _T], retries: Retries) -> _T:
        """What ``attempt`` returns, given the seconds left; done again as long as that may help."""
        while True:
            try:
                return attempt(retries.left_s())
            except Refusal as refusal:
                time.sleep(retries.wait_s(refusal))


__all__ = ["SyncCalls"]
