"""What the clients ask a server, and how the answers are read; nothing here waits or connects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cmamil_sdk._client_results import (
    UPLOAD_SCHEME,
    ModelFacts,
    SlideInspection,
    inspection_from,
    model_from,
    prediction_from,
    progress_from,
)
from cmamil_sdk._client_server import ServerFacts, ServerStats, server_from, stats_from
from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk.errors import UnexpectedError
from cmamil_sdk.predict import Prediction, ProgressEvent

_T = TypeVar("_T")
_QUICK_TIMEOUT_S = 10.0

OnProgress = Callable[[ProgressEvent], None]
_ADMIN = "/cmamil.v1.ModelAdminService"


@dataclass(frozen=True)
class Question(Generic[_T]):
    """A call with one answer: its method, its message, and how the answer is read.

    ``timeout_s``: None means the client's own.
    """

    method: str
    message: Message
    answer: type[Any]
    read: Callable[[Any], _T]
    timeout_s: float | None = _QUICK_TIMEOUT_S
    retried: bool = True


@dataclass(frozen=True)
class Stream(Generic[_T]):
    """A call whose answer is a stream of events; ``read`` returns the result from the last of them."""

    method: str
    message: Message
    answer: type[Any]
    read: Callable[[Any], _T | None]


def ask_health() -> Question[str]:
    """Whether the server takes work; not retried, because the answer would be another one."""
    return Question(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(),
        health_pb2.HealthCheckResponse,
        lambda reply: health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status),
        retried=False,
    )


def ask_models() -> Question[tuple[ModelFacts, ...]]:
    """The models that the server has."""
    return Question(
        "/cmamil.v1.ModelService/ListModels",
        model_pb2.ListModelsRequest(),
        model_pb2.ListModelsResponse,
        lambda reply: tuple(model_from(model) for model in reply.models),
    )


def ask_server_info() -> Question[ServerFacts]:
    """What the server is and does."""
    return Question(
        "/cmamil.v1.ServerService/GetServerInfo",
        server_pb2.GetServerInfoRequest(),
        server_pb2.GetServerInfoResponse,
        server_from,
    )


def ask_server_stats() -> Question[ServerStats]:
    """What the server has done."""
    return Question(
        "/cmamil.v1.ServerService/GetServerStats",
        server_pb2.GetServerStatsRequest(),
        server_pb2.GetServerStatsResponse,
        stats_from,
    )


def ask_inspection(uri: str, *, mpp: float | None, model: str | None) -> Question[SlideInspection]:
    """What a slide is."""
    return Question(
        "/cmamil.v1.SlideService/InspectSlide",
        slide_pb2.InspectSlideRequest(
            slide=slide_source(uri),
            tiling=slide_pb2.TilingOptions(mpp_override=mpp),
            model=model_name(model),
        ),
        slide_pb2.InspectSlideResponse,
        inspection_from,
        timeout_s=None,
    )


def ask_to_load(bundle: str) -> Question[ModelFacts]:
    """To load a bundle."""
    return Question(
        f"{_ADMIN}/LoadModel",
        model_pb2.LoadModelRequest(bundle=bundle),
        model_pb2.LoadModelResponse,
        lambda reply: model_from(reply.model),
        timeout_s=None,
    )


def ask_to_unload(model: str) -> Question[None]:
    """To unload a version of a model."""
    return Question(
        f"{_ADMIN}/UnloadModel",
        model_pb2.UnloadModelRequest(name=model_name(model)),
        model_pb2.UnloadModelResponse,
        lambda _reply: None,
        timeout_s=None,
    )


def ask_for_default(model: str) -> Question[ModelFacts]:
    """To make a version of a model the default."""
    return Question(
        f"{_ADMIN}/SetDefaultModelVersion",
        model_pb2.SetDefaultModelVersionRequest(name=model_name(model)),
        model_pb2.SetDefaultModelVersionResponse,
        lambda reply: model_from(reply.model),
    )


def prediction_request(
    uri: str,
    *,
    mpp: float | None,
    top_k: int,
    attention: bool,
    model: str | None,
    expected_sha256: str,
    request_id: str,
    bypass_cache: bool,
) -> prediction_pb2.PredictSlideRequest:
    """What is asked of a slide."""
    return prediction_pb2.PredictSlideRequest(
        model=model_name(model),
        slide=slide_source(uri, expected_sha256),
        tiling=slide_pb2.TilingOptions(mpp_override=mpp),
        output=prediction_pb2.OutputOptions(attention=attention, top_k=top_k),
        request_id=request_id,
        bypass_cache=bypass_cache,
    )


def ask_prediction(
    request: prediction_pb2.PredictSlideRequest, on_progress: OnProgress | None
) -> Stream[Prediction]:
    """A prediction with progress."""
    return Stream(
        "/cmamil.v1.SlidePredictionService/StreamPredictSlide",
        prediction_pb2.StreamPredictSlideRequest(request=request),
        prediction_pb2.StreamPredictSlideResponse,
        lambda event: _result_of(event, on_progress),
    )


def _result_of(
    event: prediction_pb2.StreamPredictSlideResponse, on_progress: OnProgress | None
) -> Prediction | None:
    """The prediction if ``event`` of a stream is its result; tells progress on the way."""
    report = on_progress or (lambda _event: None)
    match event.WhichOneof("event"):
        case "progress":
            report(progress_from(event.progress))
        case "result":
            report(ProgressEvent("aggregate", 1, 1))
            return prediction_from(event.result)
    return None


def no_result(server: str) -> UnexpectedError:
    """The error of a stream that ended without its result."""
    return UnexpectedError(
        f"The server at {server} ended the stream without a result; see its log."
    )


def ask_deletion(slide_id: str) -> Question[None]:
    """Remove an uploaded slide."""
    return Question(
        "/cmamil.v1.SlideService/DeleteSlide",
        slide_pb2.DeleteSlideRequest(slide_id=slide_id.removeprefix(UPLOAD_SCHEME)),
        slide_pb2.DeleteSlideResponse,
        lambda _reply: None,
        retried=False,
    )


def slide_source(uri: str, expected_sha256: str = "") -> slide_pb2.SlideSource:
    """The message that names a slide, uploaded or not."""
    if uri.startswith(UPLOAD_SCHEME):
        slide_id = uri.removeprefix(UPLOAD_SCHEME)
        return slide_pb2.SlideSource(slide_id=slide_id, expected_sha256=expected_sha256)
    return slide_pb2.SlideSource(uri=uri, expected_sha256=expected_sha256)


def slide_named(source: slide_pb2.SlideSource) -> str:
    """What :func:`slide_source` makes the message of."""
    return f"{UPLOAD_SCHEME}{source.slide_id}" if source.slide_id else source.uri


def model_name(model: str | None) -> str:
    """A resource name; ``NAME`` and ``NAME/VERSION`` are spelled out."""
    if not model or model.startswith("models/"):
        return model or ""
    name, slash, version = model.partition("/")
    return f"models/{name}/versions/{version}" if slash else f"models/{name}"


__all__ = [
    "OnProgress",
    "Question",
    "Stream",
    "ask_deletion",
    "ask_for_default",
    "ask_health",
    "ask_inspection",
    "ask_models",
    "ask_prediction",
    "ask_server_info",
    "ask_server_stats",
    "ask_to_load",
    "ask_to_unload",
    "model_name",
    "no_result",
    "prediction_request",
    "slide_named",
    "slide_source",
]
