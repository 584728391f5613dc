"""The clients of the gRPC server: the local predictor's results and errors, from another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from cmamil_sdk.errors import DependencyMissing
from cmamil_sdk.predict import Prediction

try:
    import grpc

    from cmamil_sdk._client_asyncio import AsyncClient
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
    from cmamil_sdk._client_results import (
        CallCount,
        Durations,
        ModelFacts,
        ServerFacts,
        ServerStats,
        SlideInspection,
        WorkerFacts,
    )
    from cmamil_sdk._client_retries import Retries
    from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
except ImportError as missing:
    raise DependencyMissing(
        f"The client needs {missing.name}, which is not installed; install cmamil-sdk[client]."
    ) from missing

_T = TypeVar("_T")


class Client(BaseClient):
    """Talks to one server; safe to share between threads.

    Example::

        with Client("127.0.0.1:50051") as client:
            prediction = client.predict("case-17.svs")
            print(prediction.label, prediction.probabilities)

    Every method raises the leaf of :mod:`cmamil_sdk.errors` that the server met, or
    :class:`ServerUnreachable` when none answers, or :class:`CertificateRefused` when TLS fails. A server
    that is starting, draining or away (UNAVAILABLE) is asked up to three times more within about two
    seconds; nothing else is retried. :class:`AsyncClient` has the same methods as coroutines.
    """

    def _open(self) -> None:
        self._channel = self._connection.channel(self._credentials)

    def health(self) -> str:
        """``SERVING``, ``NOT_SERVING``, ...: whether the server takes work. Not retried.

        Raises:
            ServerUnreachable: nothing answers.
            CertificateRefused: client and server do not trust each other.
        """
        return self._ask(ask_health())

    def models(self) -> tuple[ModelFacts, ...]:
        """The models that the server has."""
        return self._ask(ask_models())

    def server_info(self) -> ServerFacts:
        """Versions, engines in use, workers, load."""
        return self._ask(ask_server_info())

    def server_stats(self) -> ServerStats:
        """Calls, stages and tiles since the server started, counted as its metrics are."""
        return self._ask(ask_server_stats())

    def load_model(self, bundle: str) -> ModelFacts:
        """Have the server load a bundle, and wait until it is ready; for administrators.

        Args:
            bundle: its directory beneath a bundle root of the server: absolute, or relative to a root.

        Raises:
            BundlePathForbidden, BundleNotFound: it lies elsewhere, or is not there.
            ModelExists: the server has that version already, with other content.
            CmamilError: the bundle cannot be loaded; what the server had serves on.
        """
        return self._ask(ask_to_load(bundle))

    def unload_model(self, model: str) -> None:
        """Have the server finish with ``NAME/VERSION``, and wait until its memory is free.

        Raises:
            ModelNeeded: it is the default of several versions, or the only model.
            DeadlineExceeded: requests are still at work with it; it goes all the same when they end.
        """
        self._ask(ask_to_unload(model))

    def set_default_version(self, model: str) -> ModelFacts:
        """Make ``NAME/VERSION`` what ``NAME`` alone means."""
        return self._ask(ask_for_default(model))

    def inspect(
        self, uri: str, *, mpp: float | None = None, model: str | None = None
    ) -> SlideInspection:
        """Say what a slide is and how many tiles ``model`` would take of it.

        Args:
            uri: a ``file:`` URI, an absolute path, or a path relative to the server's slides roots.
            mpp: microns per pixel of level 0, overriding the file.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
        """
        return self._ask(ask_inspection(uri, mpp=mpp, model=model))

    def predict(
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
        """Predict one slide.

        Args:
            uri: a ``file:`` URI, an absolute path, or a path relative to the server's slides roots.
            mpp: microns per pixel of level 0, overriding the file.
            top_k: how many telling tiles to name, at most 1,000.
            attention: fetch the maps of all tiles, as the local predictor's have them.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
            expected_sha256: refuse any other file.
            request_id: a UUID that the server's log will show.
            on_progress: called in this thread, at most about twice a second; beside the local
                stages there is ``queued``.
            timeout_s: for this call, in place of the client's.

        Raises:
            InputError: the slide cannot be used.
            DeadlineExceeded: not done in time; the server stops working on it.
            QueueFull: the server has enough to do.
        """
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
        return _retried(lambda left_s: self._stream(request, on_progress, left_s), retries)

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
        return _retried(attempt, Retries(seconds, retried=question.retried))

    def _stream(
        self,
        request: prediction_pb2.StreamPredictSlideRequest,
        on_progress: OnProgress | None,
        timeout_s: float,
    ) -> Prediction:
        method = self._channel.unary_stream(
            PREDICTION_STREAM,
            request_serializer=prediction_pb2.StreamPredictSlideRequest.SerializeToString,
            response_deserializer=prediction_pb2.StreamPredictSlideResponse.FromString,
        )
        call = method(request, timeout=timeout_s, metadata=self._connection.metadata)
        try:
            for event in call:
                result = result_of(event, on_progress)
                if result is not None:
                    return result
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem
        finally:
            call.cancel()
        raise no_result(self.server)


def _retried(attempt: Callable[[float], _T], retries: Retries) -> _T:
    while True:
        try:
            return attempt(retries.left_s())
        except Refusal as refusal:
            time.sleep(retries.wait_s(refusal))


__all__ = [
    "AsyncClient",
    "CallCount",
    "Client",
    "Durations",
    "ModelFacts",
    "ServerFacts",
    "ServerStats",
    "SlideInspection",
    "WorkerFacts",
]
