"""What a server says of itself: the messages of ``ServerService`` as types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from cmamil_sdk._proto.cmamil.v1 import server_pb2

_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkerFacts:
    """One worker process: ``starting``, ``idle`` or ``busy``; its restarts; tiles it has done."""

    state: str
    restarts: int
    tiles: int


@dataclass(frozen=True)
class CacheLimits:
    """Of a server's cache of features."""

    max_bytes: int


@dataclass(frozen=True)
class JobLimits:
    """Of prediction jobs: at work and waiting; one that has ended is forgotten after ``keep_s``."""

    max_active: int
    max_waiting: int
    keep_s: float


@dataclass(frozen=True)
class UploadLimits:
    """Of uploaded slides: bytes of one and of all, how long one is kept, and may be silent in coming."""

    max_slide_bytes: int
    total_bytes: int
    expiry_s: float
    idle_s: float


@dataclass(frozen=True)
class ServerLimits:
    """What a server takes.

    Attributes:
        max_active_slides, max_queued: requests at work and waiting.
        max_calls_per_client: calls at a time.
        max_tiles: of a slide, over all scales.
        max_call_tiles: of one call of an encoder through the Open Inference Protocol.
        max_slide_pixels: level-0 pixels of a slide.
        default_deadline_s, max_deadline_s: given to requests without a deadline; longer ones are cut.
        max_request_bytes, max_message_bytes: of a request of ``cmamil.v1``; of any message.
        cache, jobs, uploads: None where the server has none.
    """

    max_active_slides: int
    max_queued: int
    max_calls_per_client: int
    max_tiles: int
    max_call_tiles: int
    max_slide_pixels: int
    default_deadline_s: float
    max_deadline_s: float
    max_request_bytes: int
    max_message_bytes: int
    cache: CacheLimits | None
    jobs: JobLimits | None
    uploads: UploadLimits | None


@dataclass(frozen=True)
class ServerFacts:
    """What a server is and does.

    Attributes:
        version: of cmamil-sdk there.
        packages: versions of what it runs on.
        engines: per model, ``(encoder, aggregator)`` as they run, for example
            ``("onnxruntime-cpu-fp32", "onnxruntime-cpu-fp32")``.
        reasons: per model, why its encoder runs on this engine and device.
        defaults: the models that their names alone mean.
        workers: its worker processes.
        active_slides, queued_slides: requests at work and waiting.
        tiles_decoded: tiles read and encoded since its start.
        uptime_s: seconds since its start.
        git_revision: commit of cmamil-sdk there, ``-dirty`` after it if files differ; empty if not known.
        gpus: names of its GPUs.
        limits: what it takes.
    """

    version: str
    packages: dict[str, str]
    engines: dict[str, tuple[str, str]]
    reasons: dict[str, str]
    defaults: tuple[str, ...]
    workers: tuple[WorkerFacts, ...]
    active_slides: int
    queued_slides: int
    tiles_decoded: int
    uptime_s: float
    git_revision: str
    gpus: tuple[str, ...]
    limits: ServerLimits


@dataclass(frozen=True)
class CallCount:
    """How many calls of ``rpc`` (``SERVICE/METHOD``) about ``model`` ended with the status ``code``.

    ``model`` is ``NAME/VERSION``, empty for calls about none, or refused before it was known.
    """

    rpc: str
    model: str
    code: str
    count: int


@dataclass(frozen=True)
class Durations:
    """How often something was done, and the seconds that it took in all."""

    count: int
    total_s: float


@dataclass(frozen=True)
class CacheStats:
    """Slides whose features were in the cache, and those looked for in vain; length of its entries."""

    hits: int
    misses: int
    bytes: int


@dataclass(frozen=True)
class JobStats:
    """Prediction jobs that wait and run now, and those that have ended since the server's start."""

    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class UploadStats:
    """Uploaded slides and their bytes; uploads on their way and the bytes announced of them; now."""

    slides: int
    bytes: int
    arriving: int
    arriving_bytes: int


@dataclass(frozen=True)
class ServerStats:
    """What a server has done since its start.

    Attributes:
        uptime_s: seconds since its start.
        calls: counts of calls that ended.
        rpcs: durations of calls, by ``SERVICE/METHOD``.
        stages: durations of the stages of predictions: ``queued`` and those of
            :attr:`Prediction.seconds`.
        cancelled: predictions that were cancelled or ran out of time, by the stage that they were in.
        tiles_ok, tiles_failed: tiles read and encoded, and tiles that could not be decoded.
        batches: of tiles.
        worker_restarts: worker processes that died and were started again.
        active_slides, queued_slides: requests at work and waiting, now.
        queued_batches: batches of tiles that wait for a worker, now.
        cache, jobs, uploads: None where the server has none.
    """

    uptime_s: float
    calls: tuple[CallCount, ...]
    rpcs: dict[str, Durations]
    stages: dict[str, Durations]
    cancelled: dict[str, int]
    tiles_ok: int
    tiles_failed: int
    batches: int
    worker_restarts: int
    active_slides: int
    queued_slides: int
    queued_batches: int
    cache: CacheStats | None
    jobs: JobStats | None
    uploads: UploadStats | None


def server_from(message: server_pb2.GetServerInfoResponse) -> ServerFacts:
    """A server."""
    return ServerFacts(
        version=message.version,
        packages={package.package: package.version for package in message.packages},
        engines={
            model.model: (_engine_label(model.encoder), model.aggregator)
            for model in message.models
        },
        reasons={model.model: model.encoder.reason for model in message.models},
        defaults=tuple(model.model for model in message.models if model.is_default),
        workers=tuple(
            WorkerFacts(
                server_pb2.Worker.State.Name(worker.state).removeprefix("STATE_").lower(),
                worker.restarts,
                worker.tiles,
            )
            for worker in message.workers
        ),
        active_slides=message.active_slides,
        queued_slides=message.queued_slides,
        tiles_decoded=message.tiles_decoded,
        uptime_s=_seconds(message.uptime),
        git_revision=message.git_revision,
        gpus=tuple(message.gpus),
        limits=_limits_from(message.limits),
    )


def stats_from(message: server_pb2.GetServerStatsResponse) -> ServerStats:
    """What a server has done."""
    return ServerStats(
        uptime_s=_seconds(message.uptime),
        calls=tuple(CallCount(c.rpc, c.model, c.code, c.count) for c in message.calls),
        rpcs=_durations_from(message.rpcs),
        stages=_durations_from(message.stages),
        cancelled={stage.name: stage.count for stage in message.cancelled},
        tiles_ok=message.tiles_ok,
        tiles_failed=message.tiles_failed,
        batches=message.batches,
        worker_restarts=message.worker_restarts,
        active_slides=message.active_slides,
        queued_slides=message.queued_slides,
        queued_batches=message.queued_batches,
        cache=_if_there(message, "cache", lambda m: CacheStats(m.hits, m.misses, m.bytes)),
        jobs=_if_there(
            message,
            "jobs",
            lambda m: JobStats(m.pending, m.running, m.succeeded, m.failed, m.cancelled),
        ),
        uploads=_if_there(
            message,
            "uploads",
            lambda m: UploadStats(m.slides, m.bytes, m.arriving, m.arriving_bytes),
        ),
    )


def _limits_from(message: server_pb2.Limits) -> ServerLimits:
    return ServerLimits(
        max_active_slides=message.max_active_slides,
        max_queued=message.max_queued,
        max_calls_per_client=message.max_calls_per_client,
        max_tiles=message.max_tiles,
        max_call_tiles=message.max_call_tiles,
        max_slide_pixels=message.max_slide_pixels,
        default_deadline_s=_seconds(message.default_deadline),
        max_deadline_s=_seconds(message.max_deadline),
        max_request_bytes=message.max_request_bytes,
        max_message_bytes=message.max_message_bytes,
        cache=_if_there(message, "cache", lambda m: CacheLimits(m.max_bytes)),
        jobs=_if_there(
            message, "jobs", lambda m: JobLimits(m.max_active, m.max_waiting, _seconds(m.keep))
        ),
        uploads=_if_there(
            message,
            "uploads",
            lambda m: UploadLimits(
                m.max_slide_bytes, m.total_bytes, _seconds(m.expiry), _seconds(m.idle)
            ),
        ),
    )


def _if_there(message: Any, field: str, read: Callable[[Any], _T]) -> _T | None:
    return read(getattr(message, field)) if message.HasField(field) else None


def _seconds(message: Duration) -> float:
    return message.ToNanoseconds() / 1e9


def _durations_from(messages: Iterable[server_pb2.Durations]) -> dict[str, Durations]:
    return {m.name: Durations(m.count, _seconds(m.total)) for m in messages}


def _engine_label(engine: server_pb2.EngineInfo) -> str:
    return f"{engine.name}-{engine.device}-{engine.precision}"


__all__ = [
    "CacheLimits",
    "CacheStats",
    "CallCount",
    "Durations",
    "JobLimits",
    "JobStats",
    "ServerFacts",
    "ServerLimits",
    "ServerStats",
    "UploadLimits",
    "UploadStats",
    "WorkerFacts",
    "server_from",
    "stats_from",
]
