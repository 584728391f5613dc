"""The client for programs that run on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from cmamil_sdk._client_base import BaseClient
from cmamil_sdk._client_calls import (
    PREDICTION_STREAM,
    OnProgress,
    Question,
    ask_for_default,
    ask_health,
    ask_inspection,
    ask_models,
    ask_server_info,
    ask_server_stats,
    ask_to_load,
    ask_to_unload,
    no_result,
    prediction_request,
    result_of,
)
from cmamil_sdk._client_errors import Refusal
from cmamil_sdk._client_results import ModelFacts, ServerFacts, ServerStats, SlideInspection
from cmamil_sdk._client_retries import Retries
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
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
        )
        retries = Retries(self.timeout_s if timeout_s is None else timeout_s)
        return await _retried(lambda left_s: self._stream(request, on_progress, left_s), retries)

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

    async def _stream(
        self,
        request: prediction_pb2.StreamPredictSlideRequest,
        on_progress: OnProgress | None,
        timeout_s: float,
    ) -> Prediction:
        method = self._connected().unary_stream(
            PREDICTION_STREAM,
            request_serializer=prediction_pb2.StreamPredictSlideRequest.SerializeToString,
            response_deserializer=prediction_pb2.StreamPredictSlideResponse.FromString,
        )
        call = method(request, timeout=timeout_s, metadata=self._connection.metadata)
        try:
            async for event in call:
                result = result_of(event, on_progress)
                if result is not None:
                    return result
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem
        finally:
            call.cancel()
        raise no_result(self.server)


async def _retried(attempt: Callable[[float], Awaitable[_T]], retries: Retries) -> _T:
    while True:
        try:
            return await attempt(retries.left_s())
        except Refusal as refusal:
            await asyncio.sleep(retries.wait_s(refusal))


__all__ = ["AsyncClient"]
