import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PackageVersion(_message.Message):
    __slots__ = ("package", "version")
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    package: str
    version: str
    def __init__(self, package: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class EngineInfo(_message.Message):
    __slots__ = ("name", "device", "precision", "version", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: str
    precision: str
    version: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., version: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ModelRuntime(_message.Message):
    __slots__ = ("model", "encoder", "aggregator", "is_default")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    model: str
    encoder: EngineInfo
    aggregator: str
    is_default: bool
    def __init__(self, model: _Optional[str] = ..., encoder: _Optional[_Union[EngineInfo, _Mapping]] = ..., aggregator: _Optional[str] = ..., is_default: _Optional[bool] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("state", "restarts", "tiles")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Worker.State]
        STATE_STARTING: _ClassVar[Worker.State]
        STATE_IDLE: _ClassVar[Worker.State]
        STATE_BUSY: _ClassVar[Worker.State]
    STATE_UNSPECIFIED: Worker.State
    STATE_STARTING: Worker.State
    STATE_IDLE: Worker.State
    STATE_BUSY: Worker.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    state: Worker.State
    restarts: int
    tiles: int
    def __init__(self, state: _Optional[_Union[Worker.State, str]] = ..., restarts: _Optional[int] = ..., tiles: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_active_slides", "max_queued", "max_tiles", "max_slide_pixels", "default_deadline", "max_deadline", "max_request_bytes", "max_message_bytes", "max_calls_per_client", "max_call_tiles", "cache", "jobs", "uploads")
    MAX_ACTIVE_SLIDES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    MAX_TILES_FIELD_NUMBER: _ClassVar[int]
    MAX_SLIDE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MAX_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_PER_CLIENT_FIELD_NUMBER: _ClassVar[int]
    MAX_CALL_TILES_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    max_active_slides: int
    max_queued: int
    max_tiles: int
    max_slide_pixels: int
    default_deadline: _duration_pb2.Duration
    max_deadline: _duration_pb2.Duration
    max_request_bytes: int
    max_message_bytes: int
    max_calls_per_client: int
    max_call_tiles: int
    cache: CacheLimits
    jobs: JobLimits
    uploads: UploadLimits
    def __init__(self, max_active_slides: _Optional[int] = ..., max_queued: _Optional[int] = ..., max_tiles: _Optional[int] = ..., max_slide_pixels: _Optional[int] = ..., default_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_deadline: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_request_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_calls_per_client: _Optional[int] = ..., max_call_tiles: _Optional[int] = ..., cache: _Optional[_Union[CacheLimits, _Mapping]] = ..., jobs: _Optional[_Union[JobLimits, _Mapping]] = ..., uploads: _Optional[_Union[UploadLimits, _Mapping]] = ...) -> None: ...

class CacheLimits(_message.Message):
    __slots__ = ("max_bytes",)
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_bytes: int
    def __init__(self, max_bytes: _Optional[int] = ...) -> None: ...

class JobLimits(_message.Message):
    __slots__ = ("max_active", "max_waiting", "keep")
    MAX_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    max_active: int
    max_waiting: int
    keep: _duration_pb2.Duration
    def __init__(self, max_active: _Optional[int] = ..., max_waiting: _Optional[int] = ..., keep: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UploadLimits(_message.Message):
    __slots__ = ("max_slide_bytes", "total_bytes", "expiry", "idle")
    MAX_SLIDE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    max_slide_bytes: int
    total_bytes: int
    expiry: _duration_pb2.Duration
    idle: _duration_pb2.Duration
    def __init__(self, max_slide_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., expiry: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "packages", "models", "workers", "limits", "uptime", "active_slides", "queued_slides", "tiles_decoded", "git_revision", "gpus")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SLIDES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SLIDES_FIELD_NUMBER: _ClassVar[int]
    TILES_DECODED_FIELD_NUMBER: _ClassVar[int]
    GIT_REVISION_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    version: str
    packages: _containers.RepeatedCompositeFieldContainer[PackageVersion]
    models: _containers.RepeatedCompositeFieldContainer[ModelRuntime]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    limits: Limits
    uptime: _duration_pb2.Duration
    active_slides: int
    queued_slides: int
    tiles_decoded: int
    git_revision: str
    gpus: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., packages: _Optional[_Iterable[_Union[PackageVersion, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelRuntime, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., active_slides: _Optional[int] = ..., queued_slides: _Optional[int] = ..., tiles_decoded: _Optional[int] = ..., git_revision: _Optional[str] = ..., gpus: _Optional[_Iterable[str]] = ...) -> None: ...

class GetServerStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CallCount(_message.Message):
    __slots__ = ("rpc", "model", "code", "count")
    RPC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    rpc: str
    model: str
    code: str
    count: int
    def __init__(self, rpc: _Optional[str] = ..., model: _Optional[str] = ..., code: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Durations(_message.Message):
    __slots__ = ("name", "count", "total")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    count: int
    total: _duration_pb2.Duration
    def __init__(self, name: _Optional[str] = ..., count: _Optional[int] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class StageCount(_message.Message):
    __slots__ = ("name", "count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    count: int
    def __init__(self, name: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("hits", "misses", "bytes")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    hits: int
    misses: int
    bytes: int
    def __init__(self, hits: _Optional[int] = ..., misses: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class JobStats(_message.Message):
    __slots__ = ("pending", "running", "succeeded", "failed", "cancelled")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    pending: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    def __init__(self, pending: _Optional[int] = ..., running: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ...) -> None: ...

class UploadStats(_message.Message):
    __slots__ = ("slides", "bytes", "arriving", "arriving_bytes")
    SLIDES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ARRIVING_FIELD_NUMBER: _ClassVar[int]
    ARRIVING_BYTES_FIELD_NUMBER: _ClassVar[int]
    slides: int
    bytes: int
    arriving: int
    arriving_bytes: int
    def __init__(self, slides: _Optional[int] = ..., bytes: _Optional[int] = ..., arriving: _Optional[int] = ..., arriving_bytes: _Optional[int] = ...) -> None: ...

class GetServerStatsResponse(_message.Message):
    __slots__ = ("uptime", "calls", "rpcs", "stages", "cancelled", "tiles_ok", "tiles_failed", "batches", "worker_restarts", "active_slides", "queued_slides", "queued_batches", "cache", "jobs", "uploads")
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    RPCS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    TILES_OK_FIELD_NUMBER: _ClassVar[int]
    TILES_FAILED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    WORKER_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SLIDES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_SLIDES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    JOBS_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    uptime: _duration_pb2.Duration
    calls: _containers.RepeatedCompositeFieldContainer[CallCount]
    rpcs: _containers.RepeatedCompositeFieldContainer[Durations]
    stages: _containers.RepeatedCompositeFieldContainer[Durations]
    cancelled: _containers.RepeatedCompositeFieldContainer[StageCount]
    tiles_ok: int
    tiles_failed: int
    batches: int
    worker_restarts: int
    active_slides: int
    queued_slides: int
    queued_batches: int
    cache: CacheStats
    jobs: JobStats
    uploads: UploadStats
    def __init__(self, uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., calls: _Optional[_Iterable[_Union[CallCount, _Mapping]]] = ..., rpcs: _Optional[_Iterable[_Union[Durations, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[Durations, _Mapping]]] = ..., cancelled: _Optional[_Iterable[_Union[StageCount, _Mapping]]] = ..., tiles_ok: _Optional[int] = ..., tiles_failed: _Optional[int] = ..., batches: _Optional[int] = ..., worker_restarts: _Optional[int] = ..., active_slides: _Optional[int] = ..., queued_slides: _Optional[int] = ..., queued_batches: _Optional[int] = ..., cache: _Optional[_Union[CacheStats, _Mapping]] = ..., jobs: _Optional[_Union[JobStats, _Mapping]] = ..., uploads: _Optional[_Union[UploadStats, _Mapping]] = ...) -> None: ...
