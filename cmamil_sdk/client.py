"""The client of the gRPC server: the local predictor's results and errors, from another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cmamil_sdk._client_results import (
    ModelFacts,
    ServerFacts,
    SlideInspection,
    WorkerFacts,
    inspection_from,
    model_from,
    prediction_from,
    progress_from,
    server_from,
)
from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk.errors import DependencyMissing, UnexpectedError
from cmamil_sdk.predict import Prediction, ProgressEvent

try:
    import grpc
    from google.protobuf.message import Message
    from grpc_health.v1 import health_pb2

    from cmamil_sdk._client_connection import Connection
    from cmamil_sdk._client_errors import Refusal, refusal_of
except ImportError as missing:
    raise DependencyMissing(
        f"The client needs {missing.name}, which is not installed; install cmamil-sdk[client]."
    ) from missing

_T = TypeVar("_T")
_QUICK_TIMEOUT_S = 10.0
_RETRY_DELAYS_S = (0.2, 0.5, 1.0)
_LONGEST_RETRY_S = 5.0


class Client:
    """Talks to one server; safe to share between threads.

    Example::

        with Client("127.0.0.1:50051") as client:
            prediction = client.predict("case-17.svs")
            print(prediction.label, prediction.probabilities)

    Every method raises the leaf of :mod:`cmamil_sdk.errors` that the server met, or
    :class:`ServerUnreachable` when none answers, or :class:`CertificateRefused` when TLS fails. A server
    that is starting, draining or away (UNAVAILABLE) is asked up to three times more within about two
    seconds; nothing else is retried.
    """

    def __init__(
        self,
        server: str = "127.0.0.1:50051",
        *,
        timeout_s: float = 900.0,
        tls: bool = False,
        ca: Path | str | None = None,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        token: str | None = None,
    ) -> None:
        """Connect lazily.

        Args:
            server: ``HOST:PORT``.
            timeout_s: how long a prediction or an inspection may take in all.
            tls: speak TLS; ``ca`` or ``certificate`` mean so as well.
            ca: PEM of the authority that signed the server's certificate; without it those that
                gRPC brings along.
            certificate: PEM of this client's own certificate, for servers that want one.
            key: PEM of its key.
            token: sent with each call; never in the clear to another machine.

        Raises:
            FieldInvalid: ``server`` is not ``HOST:PORT``, a file cannot be used, or the token would
                travel in the clear.
        """
        self._connection = Connection(server, tls, ca, certificate, key, token)
        self.server = server
        self.timeout_s = timeout_s
        self._channel = self._connection.channel()

    def health(self) -> str:
        """``SERVING``, ``NOT_SERVING``, ...: whether the server takes work. Not retried.

        Raises:
            ServerUnreachable: nothing answers.
            CertificateRefused: client and server do not trust each other.
        """
        reply = self._unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest(),
            health_pb2.HealthCheckResponse,
            timeout_s=_QUICK_TIMEOUT_S,
            retry=False,
        )
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def models(self) -> tuple[ModelFacts, ...]:
        """The models that the server has."""
        reply = self._unary(
            "/cmamil.v1.ModelService/ListModels",
            model_pb2.ListModelsRequest(),
            model_pb2.ListModelsResponse,
            timeout_s=_QUICK_TIMEOUT_S,
        )
        return tuple(model_from(model) for model in reply.models)

    def server_info(self) -> ServerFacts:
        """Versions, engines in use, workers, load."""
        reply = self._unary(
            "/cmamil.v1.ServerService/GetServerInfo",
            server_pb2.GetServerInfoRequest(),
            server_pb2.GetServerInfoResponse,
            timeout_s=_QUICK_TIMEOUT_S,
        )
        return server_from(reply)

    def inspect(
        self, uri: str, *, mpp: float | None = None, model: str | None = None
    ) -> SlideInspection:
        """Say what a slide is and how many tiles ``model`` would take of it.

        Args:
            uri: a ``file:`` URI, an absolute path, or a path relative to the server's slides roots.
            mpp: microns per pixel of level 0, overriding the file.
            model: ``NAME`` or ``NAME/VERSION``; may be left out where the server has only one.
        """
        request = slide_pb2.InspectSlideRequest(
            slide=slide_pb2.SlideSource(uri=uri),
            tiling=slide_pb2.TilingOptions(mpp_override=mpp),
            model=_model_name(model),
        )
        reply = self._unary(
            "/cmamil.v1.SlideService/InspectSlide",
            request,
            slide_pb2.InspectSlideResponse,
            timeout_s=self.timeout_s,
        )
        return inspection_from(reply)

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
        on_progress: Callable[[ProgressEvent], None] | None = None,
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
        request = prediction_pb2.PredictSlideRequest(
            model=_model_name(model),
            slide=slide_pb2.SlideSource(uri=uri, expected_sha256=expected_sha256),
            tiling=slide_pb2.TilingOptions(mpp_override=mpp),
            output=prediction_pb2.OutputOptions(attention=attention, top_k=top_k),
            request_id=request_id,
        )
        report = on_progress or (lambda _event: None)
        seconds = self.timeout_s if timeout_s is None else timeout_s
        return self._with_retries(lambda left_s: self._stream(request, report, left_s), seconds)

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

    def _unary(
        self,
        path: str,
        request: Message,
        answer: type[Any],
        *,
        timeout_s: float,
        retry: bool = True,
    ) -> Any:
        method = self._channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )

        def attempt(left_s: float) -> Any:
            try:
                return method(request, timeout=left_s, metadata=self._connection.metadata)
            except grpc.RpcError as problem:
                raise self._refusal(problem) from problem

        return self._with_retries(attempt, timeout_s, delays_s=_RETRY_DELAYS_S if retry else ())

    def _stream(
        self,
        request: prediction_pb2.PredictSlideRequest,
        report: Callable[[ProgressEvent], None],
        timeout_s: float,
    ) -> Prediction:
        method = self._channel.unary_stream(
            "/cmamil.v1.SlidePredictionService/StreamPredictSlide",
            request_serializer=prediction_pb2.StreamPredictSlideRequest.SerializeToString,
            response_deserializer=prediction_pb2.StreamPredictSlideResponse.FromString,
        )
        call = method(
            prediction_pb2.StreamPredictSlideRequest(request=request),
            timeout=timeout_s,
            metadata=self._connection.metadata,
        )
        try:
            for event in call:
                match event.WhichOneof("event"):
                    case "progress":
                        report(progress_from(event.progress))
                    case "result":
                        report(ProgressEvent("aggregate", 1, 1))
                        return prediction_from(event.result)
        except grpc.RpcError as problem:
            raise self._refusal(problem) from problem
        finally:
            call.cancel()
        raise UnexpectedError(
            f"The server at {self.server} ended the stream without a result; see its log."
        )

    def _with_retries(
        self,
        attempt: Callable[[float], _T],
        timeout_s: float,
        *,
        delays_s: tuple[float, ...] = _RETRY_DELAYS_S,
    ) -> _T:
        deadline_s = time.monotonic() + timeout_s
        for delay_s in (*delays_s, None):
            try:
                return attempt(max(0.0, deadline_s - time.monotonic()))
            except Refusal as refusal:
                if delay_s is None or not refusal.again:
                    raise refusal.error from refusal.__cause__
                wait_s = min(max(delay_s, refusal.delay_s or 0.0), _LONGEST_RETRY_S)
                if time.monotonic() + wait_s >= deadline_s:
                    raise refusal.error from refusal.__cause__
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, problem: Any) -> Refusal:
        """The typed error of a failed call."""
        return refusal_of(problem, self.server, secure=self._connection.secure)


def _model_name(model: str | None) -> str:
    """A resource name; ``NAME`` and ``NAME/VERSION`` are spelled out."""
    if not model or model.startswith("models/"):
        return model or ""
    name, slash, version = model.partition("/")
    return f"models/{name}/versions/{version}" if slash else f"models/{name}"


__all__ = ["Client", "ModelFacts", "ServerFacts", "SlideInspection", "WorkerFacts"]
