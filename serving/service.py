"""The handlers of all services: bytes in, bytes out, every error a typed status."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable, Iterator

import grpc
from google.protobuf.message import Message

from cmamil_sdk import __version__
from cmamil_sdk._proto.cmamil.v1 import model_pb2, prediction_pb2, server_pb2, slide_pb2
from cmamil_sdk.errors import CmamilError, MessageTooLarge, QueueFull, UnexpectedError

from .calls import ID_CHARACTERS, URI_CHARACTERS, current_call
from .config import ServerConfig
from .convert import (
    WORKER_STATES,
    duration,
    engine_message,
    inspection_message,
    model_message,
    prediction_message,
    stats_message,
)
from .messages import Ready
from .metrics import Metrics, Now
from .models import LoadedModel, ModelTable
from .open_inference.service import OPEN_INFERENCE, OpenInference
from .pool import WorkerPool
from .predictor import Answer, Predictor, SlideRequest, Stage
from .requests import inspection_request, parse, prediction_request, request_id
from .status import RequestInvalid, status_of
from .streaming import CallContext, stream_prediction

LOG = logging.getLogger(__name__)

_ENVELOPE_BYTES = 256  # what a stream adds to a result
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openslide-python", "openslide-bin", "grpcio")


SERVICE_NAMES = (
    "cmamil.v1.SlidePredictionService",
    "cmamil.v1.SlideService",
    "cmamil.v1.ModelService",
    "cmamil.v1.ServerService",
    OPEN_INFERENCE,
)


class Services:
    """All services of one server; what they need is filled in as it becomes ready."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._started_s = time.monotonic()
        self.models = ModelTable()
        self.predictor: Predictor | None = None
        self.pool: WorkerPool | None = None
        self.engines: Ready | None = None
        self.metrics = Metrics(self.now)
        self._open_inference = OpenInference(
            config, self.models, self._ready_predictor, self.is_ready
        )

    def is_ready(self) -> bool:
        """Whether the models are loaded, a worker can take work, and new work is taken."""
        if self.pool is None or self.predictor is None or self.predictor.admission.draining:
            return False
        return bool(self.pool.ready_workers and self.models.loaded())

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What :meth:`grpc.aio.Server.add_generic_rpc_handlers` takes."""
        unary: dict[str, dict[str, Callable[[bytes, CallContext], Awaitable[Message]]]] = {
            "cmamil.v1.SlidePredictionService": {"PredictSlide": self._predict_slide},
            "cmamil.v1.SlideService": {"InspectSlide": self._inspect_slide},
            "cmamil.v1.ModelService": {
                "ListModels": self._list_models,
                "GetModel": self._get_model,
            },
            "cmamil.v1.ServerService": {
                "GetServerInfo": self._get_server_info,
                "GetServerStats": self._get_server_stats,
            },
            OPEN_INFERENCE: self._open_inference.methods(),
        }
        handlers = {
            service: {
                name: grpc.unary_unary_rpc_method_handler(self._guarded(name, method))
                for name, method in methods.items()
            }
            for service, methods in unary.items()
        }
        handlers["cmamil.v1.SlidePredictionService"]["StreamPredictSlide"] = (
            grpc.unary_stream_rpc_method_handler(
                self._guarded("StreamPredictSlide", self._stream_predict_slide)
            )
        )
        return [
            grpc.method_handlers_generic_handler(service, methods)
            for service, methods in handlers.items()
        ]

    def _guarded(
        self, name: str, method: Callable[[bytes, CallContext], Awaitable[Message | None]]
    ) -> Callable[[bytes, CallContext], Awaitable[bytes | None]]:
        """Turn a method's errors into statuses, and its answer into bytes."""

        async def handle(data: bytes, context: CallContext) -> bytes | None:
            try:
                answer = await method(data, context)
                return None if answer is None else answer.SerializeToString()
            except (CmamilError, RequestInvalid) as problem:
                error: CmamilError | RequestInvalid = problem
            except Exception:
                # Nothing may reach gRPC untyped: it would answer UNKNOWN with the bare message.
                LOG.exception("%s met an unexpected error", name)
                error = UnexpectedError(
                    f"The server met an unexpected error in {name}; its log holds the details."
                )
            retry_s = None
            if isinstance(error, QueueFull) and self.predictor is not None:
                retry_s = self.predictor.admission.retry_after_s()
            status = status_of(error, retry_after_s=retry_s)
            await context.abort(status.code, status.message, status.trailers)
            return None

        return handle

    def _ready_predictor(self) -> Predictor:
        self.models.all()
        assert self.predictor is not None
        return self.predictor

    async def _predict_slide(self, data: bytes, context: CallContext) -> Message:
        kind = prediction_pb2.PredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes)
        identity, request = self._checked(message)
        predictor = self._ready_predictor()
        with predictor.admission.enter() as ticket:
            answer = await predictor.predict(
                request, ticket, remaining_s=context.time_remaining(), report=_entering
            )
            return await self._written(predictor, answer, request.model, message, identity)

    async def _stream_predict_slide(self, data: bytes, context: CallContext) -> None:
        kind = prediction_pb2.StreamPredictSlideRequest
        message = parse(kind, data, self._config.max_request_bytes).request
        identity, request = self._checked(message)
        predictor = self._ready_predictor()
        with predictor.admission.enter() as ticket:

            async def predict(
                report: Callable[[Stage], None],
            ) -> prediction_pb2.PredictSlideResponse:
                def enter(stage: Stage) -> None:
                    _entering(stage)
                    report(stage)

                answer = await predictor.predict(
                    request, ticket, remaining_s=context.time_remaining(), report=enter
                )
                written = await self._written(predictor, answer, request.model, message, identity)
                ticket.release()  # a client that takes its answer slowly keeps no place
                return written

            accepted = prediction_pb2.Accepted(
                queue_position=ticket.position, model=request.model.resource
            )
            async with predictor.deadlines.limit(context.time_remaining()):
                await stream_prediction(
                    predict, context, accepted, identity, heartbeat_s=self._config.heartbeat_s
                )

    def _checked(self, message: prediction_pb2.PredictSlideRequest) -> tuple[str, SlideRequest]:
        """The id of a prediction request, and what it asks for."""
        call, identity = current_call(), request_id(message)
        call.request_id, call.slide = identity[:ID_CHARACTERS], message.slide.uri[:URI_CHARACTERS]
        request = prediction_request(message, self.models)
        call.model = request.model.bundle.label
        return identity, request

    async def _written(
        self,
        predictor: Predictor,
        answer: Answer,
        model: LoadedModel,
        message: prediction_pb2.PredictSlideRequest,
        identity: str,
    ) -> prediction_pb2.PredictSlideResponse:
        """The answer to a prediction request, made in a thread."""
        call = current_call()
        call.enter("answering")
        call.seconds = {"queued": answer.seconds_queued, **answer.prediction.seconds}
        written = await predictor.in_thread(self._answer, answer, model, message, identity)
        call.answered = True  # the client may hang up on the answer, before the call's end
        return written

    def _answer(
        self,
        answer: Answer,
        model: LoadedModel,
        message: prediction_pb2.PredictSlideRequest,
        identity: str,
    ) -> prediction_pb2.PredictSlideResponse:
        """The answer, refused if it is longer than a message may be; runs in a thread."""
        written = prediction_message(answer, model, identity, attention=message.output.attention)
        size, limit = written.ByteSize(), self._config.max_message_bytes - _ENVELOPE_BYTES
        if size > limit:
            raise MessageTooLarge(
                f"The answer is {size} bytes long, the limit is {limit}; ask without attention, or "
                "raise the server's max_message_bytes and the client's limit."
            )
        return written

    async def _inspect_slide(self, data: bytes, context: CallContext) -> Message:
        message = parse(slide_pb2.InspectSlideRequest, data, self._config.max_request_bytes)
        call = current_call()
        call.slide = message.slide.uri[:URI_CHARACTERS]
        request = inspection_request(message, self.models)
        call.model = request.model.bundle.label
        predictor = self._ready_predictor()
        with predictor.admission.enter() as ticket:
            found = await predictor.inspect(request, ticket, remaining_s=context.time_remaining())
        return inspection_message(found)

    async def _list_models(self, data: bytes, _context: CallContext) -> Message:
        parse(model_pb2.ListModelsRequest, data, self._config.max_request_bytes)
        return model_pb2.ListModelsResponse(models=map(model_message, self.models.all()))

    async def _get_model(self, data: bytes, _context: CallContext) -> Message:
        message = parse(model_pb2.GetModelRequest, data, self._config.max_request_bytes)
        model = self.models.find(message.name, field="name")
        return model_pb2.GetModelResponse(model=model_message(model))

    async def _get_server_info(self, data: bytes, _context: CallContext) -> Message:
        parse(server_pb2.GetServerInfoRequest, data, self._config.max_request_bytes)
        info = server_pb2.GetServerInfoResponse(
            version=__version__,
            packages=_packages(),
            limits=self._limits(),
            uptime=duration(time.monotonic() - self._started_s),
        )
        if self.engines is not None:
            for model in self.models.loaded():
                encoder = engine_message(self.engines.engines[model.number])
                aggregator = model.bundle.aggregator_info.label
                info.models.add(model=model.resource, encoder=encoder, aggregator=aggregator)
        if self.pool is not None:
            for slot in self.pool.slots:
                state = WORKER_STATES[slot.state]
                info.workers.add(state=state, restarts=slot.restarts, tiles=slot.tiles)
            info.tiles_decoded = self.pool.tiles
        if self.predictor is not None:
            info.active_slides = self.predictor.admission.active
            info.queued_slides = len(self.predictor.admission.waiting)
        return info

    async def _get_server_stats(self, data: bytes, _context: CallContext) -> Message:
        parse(server_pb2.GetServerStatsRequest, data, self._config.max_request_bytes)
        return stats_message(self.metrics, time.monotonic() - self._started_s)

    def now(self) -> Now:
        """What waits and works."""
        admission = None if self.predictor is None else self.predictor.admission
        return Now(
            active_slides=0 if admission is None else admission.active,
            queued_slides=0 if admission is None else len(admission.waiting),
            queued_batches=0 if self.pool is None else self.pool.waiting,
            worker_restarts=0 if self.pool is None else self.pool.restarts,
            runtimes=tuple(self._runtimes()),
        )

    def _runtimes(self) -> Iterator[tuple[str, str, str, str]]:
        if self.engines is None:
            return
        for model in self.models.loaded():
            manifest = model.bundle.manifest
            encoder = self.engines.engines[model.number].label
            yield manifest.name, manifest.version, "encoder", encoder
            yield manifest.name, manifest.version, "aggregator", model.bundle.aggregator_info.label

    def _limits(self) -> server_pb2.Limits:
        config = self._config
        return server_pb2.Limits(
            max_active_slides=config.max_active_slides,
            max_queued=config.max_queued,
            max_tiles=config.max_tiles,
            max_slide_pixels=config.max_slide_pixels,
            default_deadline=duration(config.default_deadline_s),
            max_deadline=duration(config.max_deadline_s),
            max_request_bytes=config.max_request_bytes,
        )


def _entering(stage: Stage) -> None:
    current_call().enter(stage.name)


def _packages() -> list[server_pb2.PackageVersion]:
    found = []
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(server_pb2.PackageVersion(package=package, version=version))
    return found


__all__ = ["SERVICE_NAMES", "Services"]
