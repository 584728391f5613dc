"""The handlers of all services: bytes in, bytes out, every error a typed status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from cmamil_sdk import __version__
from cmamil_sdk._proto.cmamil.v1 import model_pb2, server_pb2
from cmamil_sdk.errors import CmamilError, QueueFull, UnexpectedError

from .administration import Administration
from .config import ServerConfig
from .convert import (
    WORKER_STATES,
    duration,
    engine_message,
    model_message,
    stats_message,
)
from .feature_cache import FeatureCache
from .feature_stream import FeatureStream
from .handlers import Behaviour, Method
from .jobs.service import PredictionJobs
from .loading import ModelLoader
from .metrics import Metrics, Now
from .models import LoadedModel, ModelTable
from .open_inference.service import OPEN_INFERENCE, OpenInference
from .pool import WorkerPool
from .predictions import Predictions
from .predictor import Predictor
from .requests import parse
from .server_info import kept, limits, origin, packages
from .slide_service import SlideService
from .status import RequestInvalid, status_of
from .streaming import CallContext
from .uploads.uploads import Uploads

LOG = logging.getLogger(__name__)

SERVICE_NAMES = (
    "cmamil.v1.SlidePredictionService",
    "cmamil.v1.SlideService",
    "cmamil.v1.ModelService",
    "cmamil.v1.ModelAdminService",
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
        self.loader: ModelLoader | None = None
        self.cache: FeatureCache | None = None
        self.metrics = Metrics(self.now)
        self._predictions = Predictions(config, self.models, self._ready_predictor)
        self._administration = Administration(
            config, self.models, self._ready_loader, self._ready_predictor
        )
        self.jobs = PredictionJobs(config, self.models, self._ready_predictor, self.metrics)
        self.uploads = Uploads(config)
        self._slides = SlideService(config, self.models, self._ready_predictor, self.uploads)
        self._feature_stream = FeatureStream(config, self.models, self._ready_predictor)
        self._open_inference = OpenInference(
            config, self.models, self._ready_predictor, self.is_ready
        )

    def begin(self, models: Sequence[LoadedModel], pool: WorkerPool) -> None:
        """Take requests for these models, which the workers have."""
        self.pool = pool
        self.predictor = Predictor(
            self._config, pool, self.uploads, self.cache, self.metrics.count_plan
        )
        self.models.fill(models)
        self.loader = ModelLoader(self._config, self.models, pool)
        self.jobs.begin()

    def is_ready(self) -> bool:
        """Whether the models are loaded, a worker can take work, and new work is taken."""
        if self.pool is None or self.predictor is None or self.predictor.admission.draining:
            return False
        return bool(self.pool.ready_workers and self.models.loaded())

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What :meth:`grpc.aio.Server.add_generic_rpc_handlers` takes."""
        services: dict[str, dict[str, Method]] = {
            "cmamil.v1.SlidePredictionService": {
                **self._predictions.methods(),
                **self._feature_stream.methods(),
                **self.jobs.methods(),
            },
            "cmamil.v1.SlideService": self._slides.methods(),
            "cmamil.v1.ModelService": {
                "ListModels": Method(self._list_models),
                "GetModel": Method(self._get_model),
            },
            "cmamil.v1.ModelAdminService": self._administration.methods(),
            "cmamil.v1.ServerService": {
                "GetServerInfo": Method(self._get_server_info),
                "GetServerStats": Method(self._get_server_stats),
            },
            OPEN_INFERENCE: {
                name: Method(behaviour)
                for name, behaviour in self._open_inference.methods().items()
            },
        }
        return [
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: method.handler(self._guarded(name, method.behaviour))
                    for name, method in methods.items()
                },
            )
            for service, methods in services.items()
        ]

    def _guarded(
        self, name: str, method: Callable[[Any, CallContext], Awaitable[Message | None]]
    ) -> Behaviour:
        """Turn a method's errors into statuses, and its answer into bytes."""

        async def handle(request: Any, context: CallContext) -> bytes | None:
            try:
                answer = await method(request, context)
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
            del error  # its frames hold this one
            await context.abort(status.code, status.message, status.trailers)
            return None

        return handle

    def _ready_predictor(self) -> Predictor:
        self.models.all()
        assert self.predictor is not None
        return self.predictor

    def _ready_loader(self) -> ModelLoader:
        self.models.all()
        assert self.loader is not None
        return self.loader

    async def _list_models(self, data: bytes, _context: CallContext) -> Message:
        parse(model_pb2.ListModelsRequest, data, self._config.max_request_bytes)
        return model_pb2.ListModelsResponse(models=map(model_message, self.models.listed()))

    async def _get_model(self, data: bytes, _context: CallContext) -> Message:
        message = parse(model_pb2.GetModelRequest, data, self._config.max_request_bytes)
        model = self.models.find(message.name, field="name")
        return model_pb2.GetModelResponse(model=model_message(self.models.shown(model)))

    async def _get_server_info(self, data: bytes, _context: CallContext) -> Message:
        parse(server_pb2.GetServerInfoRequest, data, self._config.max_request_bytes)
        where = await asyncio.to_thread(origin)
        info = server_pb2.GetServerInfoResponse(
            version=__version__,
            packages=packages(),
            limits=limits(self._config),
            uptime=duration(time.monotonic() - self._started_s),
            git_revision=where.git_revision,
            gpus=where.gpus,
        )
        if self.pool is not None:
            for model in self.models.loaded():
                info.models.add(
                    model=model.resource,
                    encoder=engine_message(self.pool.engines[model.number]),
                    aggregator=model.bundle.aggregator_info.label,
                    is_default=self.models.is_default(model),
                )
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
        stats = stats_message(self.metrics, time.monotonic() - self._started_s)
        stats.MergeFrom(kept(self._config, self.metrics, self.cache, self.uploads))
        return stats

    def now(self) -> Now:
        """What waits and works."""
        admission = None if self.predictor is None else self.predictor.admission
        return Now(
            active_slides=0 if admission is None else admission.active,
            queued_slides=0 if admission is None else len(admission.waiting),
            queued_batches=0 if self.pool is None else self.pool.waiting,
            worker_restarts=0 if self.pool is None else self.pool.restarts,
            jobs=self.jobs.counts,
            cache_bytes=0 if self.cache is None else self.cache.bytes,
            runtimes=tuple(self._runtimes()),
        )

    def _runtimes(self) -> Iterator[tuple[str, str, str, str]]:
        if self.pool is None:
            return
        for model in self.models.loaded():
            manifest = model.bundle.manifest
            encoder = self.pool.engines[model.number].label
            yield manifest.name, manifest.version, "encoder", encoder
            yield manifest.name, manifest.version, "aggregator", model.bundle.aggregator_info.label


__all__ = ["SERVICE_NAMES", "Services"]
