"""The client for programs that run on asyncio."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from cmamil_sdk._client_base import BaseClient
from cmamil_sdk._client_calls import (
    OnProgress,
    Question,
    Stream,
    ask_deletion,
    ask_for_default,
    ask_health,
    ask_inspection,
    ask_models,
    ask_prediction,
    ask_server_info,
    ask_server_stats,
    ask_to_load,
    ask_to_unload,
    no_result,
    prediction_request,
)
from cmamil_sdk._client_errors import Refusal
from cmamil_sdk._client_features import (
    FeatureDtype,
    OnWarning,
    SlideFeatures,
    ask_features,
    feature_request,
    keep_features,
)
from cmamil_sdk._client_jobs import (
    PredictionJob,
    ask_cancellation,
    ask_job,
    ask_job_deletion,
    ask_jobs,
    ask_new_job,
    ask_watch,
)
from cmamil_sdk._client_results import (
    ModelFacts,
    SlideInspection,
    UploadedSlide,
)
from cmamil_sdk._client_retries import Retries
from cmamil_sdk._client_server import ServerFacts, ServerStats
from cmamil_sdk._client_uploads import UPLOAD, SlideFile, uploaded_from
from cmamil_sdk._proto.cmamil.v1 import slide_pb2
from cmamil_sdk.predict import Prediction

_T = TypeVar("_T")


class AsyncClient(BaseClient):
    """:class:`~cmamil_sdk.client.Client` with coroutines: the same arguments, results, errors, retries.

    Cancelling the task that waits for a call cancels the call, and the server stops working on it. An
    object belongs to one event loop.

    Example::

        async with AsyncClient("127.0.0.1:50051") as client:
            first, second = await asyncio.gather(
                client.predict("case-17.svs"), client.predict("case-18.svs")
            )
    """

    def _open(self) -> None:
        # A channel belongs to the event loop that runs, and none may yet.
        self._channel: grpc.aio.Channel | None = None

    async def health(self) -> str:
        """As :meth:`Client.health`."""
        return await self._ask(ask_health())

    async def models(self) -> tuple[ModelFacts, ...]:
        """As :meth:`Client.models`."""
        return await self._ask(ask_models())

    async def server_info(self) -> ServerFacts:
        """As :meth:`Client.server_info`."""
        return await self._ask(ask_server_info())

    async def server_stats(self) -> ServerStats:
        """As :meth:`Client.server_stats`."""
        return await self._ask(ask_server_stats())

    async def load_model(self, bundle: str) -> ModelFacts:
        """As :meth:`Client.load_model`."""
        return await self._ask(ask_to_load(bundle))

    async def unload_model(self, model: str) -> None:
        """As :meth:`Client.unload_model`."""
        await self._ask(ask_to_unload(model))

    async def set_default_version(self, model: str) -> ModelFacts:
        """As :meth:`Client.set_default_version`."""
        return await self._ask(ask_for_default(model))

    async def inspect(
        self, uri: str, *, mpp: float | None = None, model: str | None = None
    ) -> SlideInspection:
        """As :meth:`Client.inspect`."""
        return await self._ask(ask_inspection(uri, mpp=mpp, model=model))

    async def predict(
        self,
        uri: str,
        *,
        mpp: float | None = None,
        top_k: int = 16,
        attention: bool = False,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Prediction:
        """As :meth:`Client.predict`; ``on_progress`` is called in the event loop."""
        request = prediction_request(
            uri,
            mpp=mpp,
            top_k=top_k,
            attention=attention,
            model=model,
            expected_sha256=expected_sha256,
            request_id=request_id,
            bypass_cache=bypass_cache,
        )
        stream = ask_prediction(request, on_progress)
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        return await _retried(lambda left_s: self._stream(stream, left_s), retries)

    async def extract_features(
        self,
        uri: str,
        *,
        out: Path | None = None,
        dtype: FeatureDtype = "float32",
        mpp: float | None = None,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
        on_progress: OnProgress | None = None,
        on_warning: OnWarning | None = None,
        timeout_s: float | None = None,
    ) -> SlideFeatures:
        """As :meth:`Client.extract_features`; ``out`` is written in a thread."""
        request = feature_request(
            uri,
            dtype=dtype,
            mpp=mpp,
            model=model,
            expected_sha256=expected_sha256,
            request_id=request_id,
            bypass_cache=bypass_cache,
        )
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        found = await _retried(
            lambda left_s: self._stream(
                ask_features(request, dtype, on_progress, on_warning), left_s
            ),
            retries,
        )
        return await asyncio.to_thread(keep_features, found, out)

    async def create_job(
        self,
        uri: str,
        *,
        mpp: float | None = None,
        top_k: int = 16,
        attention: bool = False,
        model: str | None = None,
        expected_sha256: str = "",
        request_id: str = "",
        bypass_cache: bool = False,
    ) -> PredictionJob:
        """As :meth:`Client.create_job`."""
        return await self._ask(
            ask_new_job(
                prediction_request(
                    uri,
                    mpp=mpp,
                    top_k=top_k,
                    attention=attention,
                    model=model,
                    expected_sha256=expected_sha256,
                    request_id=request_id or str(uuid.uuid4()),
                    bypass_cache=bypass_cache,
                )
            )
        )

    async def job(self, name: str) -> PredictionJob:
        """As :meth:`Client.job`."""
        return await self._ask(ask_job(name))

    async def jobs(self, *, state: str | None = None) -> AsyncIterator[PredictionJob]:
        """As :meth:`Client.jobs`."""
        token: str | None = ""
        while token is not None:
            page, token = await self._ask(ask_jobs(state, token))
            for job in page:
                yield job

    async def watch_job(
        self,
        name: str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> PredictionJob:
        """As :meth:`Client.watch_job`; ``on_progress`` is called in the event loop."""
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s, lasting=True)
        stream = ask_watch(name, on_progress)
        return await _retried(lambda left_s: self._stream(stream, left_s), retries)

    async def cancel_job(self, name: str) -> PredictionJob:
        """As :meth:`Client.cancel_job`."""
        return await self._ask(ask_cancellation(name))

    async def delete_job(self, name: str) -> None:
        """As :meth:`Client.delete_job`."""
        await self._ask(ask_job_deletion(name))

    async def upload_slide(
        self,
        path: Path | str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> UploadedSlide:
        """As :meth:`Client.upload_slide`; ``on_progress`` is called in the event loop."""
        file = await asyncio.to_thread(SlideFile, Path(path), on_progress)
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        return await _retried(lambda left_s: self._upload(file, left_s), retries)

    async def delete_slide(self, slide_id: str) -> None:
        """As :meth:`Client.delete_slide`."""
        await self._ask(ask_deletion(slide_id))

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        """The client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.close()

    def _connected(self) -> grpc.aio.Channel:
        """The channel, made at the first call."""
        if self._channel is None:
            self._channel = self._connection.aio_channel(self._credentials)
        return self._channel

    async def _ask(self, question: Question[_T]) -> _T:
        method = self._connected().unary_unary(
            question.method,
            request_serializer=type(question.message).SerializeToString,
            response_deserializer=question.answer.FromString,
        )

        async def attempt(left_s: float) -> _T:
            metadata = self._connection.metadata
            try:
                reply: Any = await method(question.message, timeout=left_s, metadata=metadata)
            except grpc.RpcError as problem:
                raise self._refusal(problem) from problem
            return question.read(reply)

        seconds = self.timeout_s if question.timeout_s is None else question.timeout_s
        return await _retried(attempt, Retries(seconds, retried=question.retried))

    async def _stream(self, stream: Stream[_T], timeout_s: float) -> _T:
        method = self._connected().unary_stream(
            stream.method,
            request_serializer=type(stream.message).SerializeToString,
            response_deserializer=stream.answer.FromString,
        )
        call = method(stream.message, timeout=timeout_s, metadata=self._connection.metadata)
        try:
            async for event in call:
                result = stream.read(event)
                if result is not None:
                    return result
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem
        finally:
            call.cancel()
        raise no_result(self.server)

    async def _upload(self, file: SlideFile, timeout_s: float) -> UploadedSlide:
        method = self._connected().stream_unary(
            UPLOAD,
            request_serializer=slide_pb2.UploadSlideRequest.SerializeToString,
            response_deserializer=slide_pb2.UploadSlideResponse.FromString,
        )
        metadata = self._connection.metadata
        call = method(file.messages_on_a_loop(), timeout=timeout_s, metadata=metadata)
        try:
            return uploaded_from(await call)
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem


async def _retried(attempt: Callable[[float], Awaitable[_T]], retries: Retries) -> _T:
    while True:
        try:
            return await attempt(retries.left_s())
        except Refusal as refusal:
            await asyncio.sleep(retries.wait_s(refusal))


__all__ = ["AsyncClient"]
