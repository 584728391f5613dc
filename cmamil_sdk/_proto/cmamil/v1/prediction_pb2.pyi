import datetime

from cmamil_sdk._proto.cmamil.v1 import slide_pb2 as _slide_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_QUEUED: _ClassVar[Stage]
    STAGE_PLANNING: _ClassVar[Stage]
    STAGE_TILES: _ClassVar[Stage]
    STAGE_AGGREGATING: _ClassVar[Stage]

class FeatureSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_SOURCE_UNSPECIFIED: _ClassVar[FeatureSource]
    FEATURE_SOURCE_COMPUTED: _ClassVar[FeatureSource]
    FEATURE_SOURCE_CACHED: _ClassVar[FeatureSource]
    FEATURE_SOURCE_COALESCED: _ClassVar[FeatureSource]

class FeatureType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_TYPE_UNSPECIFIED: _ClassVar[FeatureType]
    FEATURE_TYPE_FLOAT32: _ClassVar[FeatureType]
    FEATURE_TYPE_FLOAT16: _ClassVar[FeatureType]
STAGE_UNSPECIFIED: Stage
STAGE_QUEUED: Stage
STAGE_PLANNING: Stage
STAGE_TILES: Stage
STAGE_AGGREGATING: Stage
FEATURE_SOURCE_UNSPECIFIED: FeatureSource
FEATURE_SOURCE_COMPUTED: FeatureSource
FEATURE_SOURCE_CACHED: FeatureSource
FEATURE_SOURCE_COALESCED: FeatureSource
FEATURE_TYPE_UNSPECIFIED: FeatureType
FEATURE_TYPE_FLOAT32: FeatureType
FEATURE_TYPE_FLOAT16: FeatureType

class OutputOptions(_message.Message):
    __slots__ = ("attention", "top_k")
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    attention: bool
    top_k: int
    def __init__(self, attention: _Optional[bool] = ..., top_k: _Optional[int] = ...) -> None: ...

class PredictSlideRequest(_message.Message):
    __slots__ = ("model", "slide", "tiling", "output", "request_id", "bypass_cache")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLIDE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    model: str
    slide: _slide_pb2.SlideSource
    tiling: _slide_pb2.TilingOptions
    output: OutputOptions
    request_id: str
    bypass_cache: bool
    def __init__(self, model: _Optional[str] = ..., slide: _Optional[_Union[_slide_pb2.SlideSource, _Mapping]] = ..., tiling: _Optional[_Union[_slide_pb2.TilingOptions, _Mapping]] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., bypass_cache: _Optional[bool] = ...) -> None: ...

class StreamPredictSlideRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: PredictSlideRequest
    def __init__(self, request: _Optional[_Union[PredictSlideRequest, _Mapping]] = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("label", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    probability: float
    def __init__(self, label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class TopTile(_message.Message):
    __slots__ = ("scale", "x", "y", "size", "score")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    scale: str
    x: int
    y: int
    size: int
    score: float
    def __init__(self, scale: _Optional[str] = ..., x: _Optional[int] = ..., y: _Optional[int] = ..., size: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class ScaleAttention(_message.Message):
    __slots__ = ("scale", "tile_size", "coords", "attention", "contribution")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    TILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    COORDS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    scale: str
    tile_size: float
    coords: _containers.RepeatedScalarFieldContainer[int]
    attention: _containers.RepeatedScalarFieldContainer[float]
    contribution: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, scale: _Optional[str] = ..., tile_size: _Optional[float] = ..., coords: _Optional[_Iterable[int]] = ..., attention: _Optional[_Iterable[float]] = ..., contribution: _Optional[_Iterable[float]] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("queued", "open", "tissue", "decode", "encode", "aggregate", "total")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    TISSUE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    queued: _duration_pb2.Duration
    open: _duration_pb2.Duration
    tissue: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    encode: _duration_pb2.Duration
    aggregate: _duration_pb2.Duration
    total: _duration_pb2.Duration
    def __init__(self, queued: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., open: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., tissue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., encode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., aggregate: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PredictSlideResponse(_message.Message):
    __slots__ = ("request_id", "model", "bundle", "bundle_sha256", "slide_id", "label", "scores", "coarse_scores", "tiles_per_scale", "tiles_failed", "mpp", "mpp_source", "timings", "engine", "top_tiles", "warnings", "attention", "feature_source", "quality")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    COARSE_SCORES_FIELD_NUMBER: _ClassVar[int]
    TILES_PER_SCALE_FIELD_NUMBER: _ClassVar[int]
    TILES_FAILED_FIELD_NUMBER: _ClassVar[int]
    MPP_FIELD_NUMBER: _ClassVar[int]
    MPP_SOURCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TOP_TILES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    bundle: str
    bundle_sha256: str
    slide_id: str
    label: str
    scores: _containers.RepeatedCompositeFieldContainer[ClassScore]
    coarse_scores: _containers.RepeatedCompositeFieldContainer[ClassScore]
    tiles_per_scale: _containers.RepeatedCompositeFieldContainer[_slide_pb2.ScaleTiles]
    tiles_failed: int
    mpp: float
    mpp_source: _slide_pb2.MppSource
    timings: StageTimings
    engine: str
    top_tiles: _containers.RepeatedCompositeFieldContainer[TopTile]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    attention: _containers.RepeatedCompositeFieldContainer[ScaleAttention]
    feature_source: FeatureSource
    quality: QualityReport
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., bundle: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., slide_id: _Optional[str] = ..., label: _Optional[str] = ..., scores: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ..., coarse_scores: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ..., tiles_per_scale: _Optional[_Iterable[_Union[_slide_pb2.ScaleTiles, _Mapping]]] = ..., tiles_failed: _Optional[int] = ..., mpp: _Optional[float] = ..., mpp_source: _Optional[_Union[_slide_pb2.MppSource, str]] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., engine: _Optional[str] = ..., top_tiles: _Optional[_Iterable[_Union[TopTile, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., attention: _Optional[_Iterable[_Union[ScaleAttention, _Mapping]]] = ..., feature_source: _Optional[_Union[FeatureSource, str]] = ..., quality: _Optional[_Union[QualityReport, _Mapping]] = ...) -> None: ...

class QualityReport(_message.Message):
    __slots__ = ("tiles_planned", "tiles_read", "tiles_failed", "tiles_background", "reader", "reader_reason")
    TILES_PLANNED_FIELD_NUMBER: _ClassVar[int]
    TILES_READ_FIELD_NUMBER: _ClassVar[int]
    TILES_FAILED_FIELD_NUMBER: _ClassVar[int]
    TILES_BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    READER_REASON_FIELD_NUMBER: _ClassVar[int]
    tiles_planned: int
    tiles_read: int
    tiles_failed: int
    tiles_background: int
    reader: str
    reader_reason: str
    def __init__(self, tiles_planned: _Optional[int] = ..., tiles_read: _Optional[int] = ..., tiles_failed: _Optional[int] = ..., tiles_background: _Optional[int] = ..., reader: _Optional[str] = ..., reader_reason: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("queue_position", "model")
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    queue_position: int
    model: str
    def __init__(self, queue_position: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    done: int
    total: int
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class StreamPredictSlideResponse(_message.Message):
    __slots__ = ("request_id", "sequence", "accepted", "progress", "result")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    accepted: Accepted
    progress: Progress
    result: PredictSlideResponse
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[PredictSlideResponse, _Mapping]] = ...) -> None: ...

class ExtractFeaturesRequest(_message.Message):
    __slots__ = ("model", "slide", "tiling", "request_id", "feature_type", "bypass_cache")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLIDE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURE_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    model: str
    slide: _slide_pb2.SlideSource
    tiling: _slide_pb2.TilingOptions
    request_id: str
    feature_type: FeatureType
    bypass_cache: bool
    def __init__(self, model: _Optional[str] = ..., slide: _Optional[_Union[_slide_pb2.SlideSource, _Mapping]] = ..., tiling: _Optional[_Union[_slide_pb2.TilingOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., feature_type: _Optional[_Union[FeatureType, str]] = ..., bypass_cache: _Optional[bool] = ...) -> None: ...

class FeatureChunk(_message.Message):
    __slots__ = ("scale", "first_row", "rows", "coords", "parent", "tissue", "features")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COORDS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TISSUE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    scale: str
    first_row: int
    rows: int
    coords: bytes
    parent: bytes
    tissue: bytes
    features: bytes
    def __init__(self, scale: _Optional[str] = ..., first_row: _Optional[int] = ..., rows: _Optional[int] = ..., coords: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., tissue: _Optional[bytes] = ..., features: _Optional[bytes] = ...) -> None: ...

class FeatureSummary(_message.Message):
    __slots__ = ("model", "slide_id", "slide_sha256", "width", "height", "mpp", "mpp_source", "reader", "recipe", "encoder", "engine", "engine_reason", "sdk_version", "tiles_per_scale", "tiles_failed", "dim", "timings", "feature_source", "warnings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    SLIDE_SHA256_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MPP_FIELD_NUMBER: _ClassVar[int]
    MPP_SOURCE_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_REASON_FIELD_NUMBER: _ClassVar[int]
    SDK_VERSION_FIELD_NUMBER: _ClassVar[int]
    TILES_PER_SCALE_FIELD_NUMBER: _ClassVar[int]
    TILES_FAILED_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    slide_id: str
    slide_sha256: str
    width: int
    height: int
    mpp: float
    mpp_source: _slide_pb2.MppSource
    reader: str
    recipe: str
    encoder: str
    engine: str
    engine_reason: str
    sdk_version: str
    tiles_per_scale: _containers.RepeatedCompositeFieldContainer[_slide_pb2.ScaleTiles]
    tiles_failed: int
    dim: int
    timings: StageTimings
    feature_source: FeatureSource
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., slide_id: _Optional[str] = ..., slide_sha256: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., mpp: _Optional[float] = ..., mpp_source: _Optional[_Union[_slide_pb2.MppSource, str]] = ..., reader: _Optional[str] = ..., recipe: _Optional[str] = ..., encoder: _Optional[str] = ..., engine: _Optional[str] = ..., engine_reason: _Optional[str] = ..., sdk_version: _Optional[str] = ..., tiles_per_scale: _Optional[_Iterable[_Union[_slide_pb2.ScaleTiles, _Mapping]]] = ..., tiles_failed: _Optional[int] = ..., dim: _Optional[int] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., feature_source: _Optional[_Union[FeatureSource, str]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class ExtractFeaturesResponse(_message.Message):
    __slots__ = ("request_id", "sequence", "accepted", "progress", "chunk", "summary")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    accepted: Accepted
    progress: Progress
    chunk: FeatureChunk
    summary: FeatureSummary
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., chunk: _Optional[_Union[FeatureChunk, _Mapping]] = ..., summary: _Optional[_Union[FeatureSummary, _Mapping]] = ...) -> None: ...

class PredictionJob(_message.Message):
    __slots__ = ("name", "state", "request", "progress", "error", "result", "create_time", "start_time", "end_time", "expire_time", "fingerprint", "queue_position")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[PredictionJob.State]
        STATE_PENDING: _ClassVar[PredictionJob.State]
        STATE_RUNNING: _ClassVar[PredictionJob.State]
        STATE_SUCCEEDED: _ClassVar[PredictionJob.State]
        STATE_FAILED: _ClassVar[PredictionJob.State]
        STATE_CANCELLED: _ClassVar[PredictionJob.State]
    STATE_UNSPECIFIED: PredictionJob.State
    STATE_PENDING: PredictionJob.State
    STATE_RUNNING: PredictionJob.State
    STATE_SUCCEEDED: PredictionJob.State
    STATE_FAILED: PredictionJob.State
    STATE_CANCELLED: PredictionJob.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: PredictionJob.State
    request: PredictSlideRequest
    progress: Progress
    error: _status_pb2.Status
    result: PredictSlideResponse
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    fingerprint: str
    queue_position: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[PredictionJob.State, str]] = ..., request: _Optional[_Union[PredictSlideRequest, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., result: _Optional[_Union[PredictSlideResponse, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., fingerprint: _Optional[str] = ..., queue_position: _Optional[int] = ...) -> None: ...

class CreatePredictionJobRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: PredictSlideRequest
    def __init__(self, request: _Optional[_Union[PredictSlideRequest, _Mapping]] = ...) -> None: ...

class CreatePredictionJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PredictionJob
    def __init__(self, job: _Optional[_Union[PredictionJob, _Mapping]] = ...) -> None: ...

class GetPredictionJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPredictionJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PredictionJob
    def __init__(self, job: _Optional[_Union[PredictionJob, _Mapping]] = ...) -> None: ...

class ListPredictionJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: PredictionJob.State
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[PredictionJob.State, str]] = ...) -> None: ...

class ListPredictionJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[PredictionJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[PredictionJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchPredictionJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchPredictionJobResponse(_message.Message):
    __slots__ = ("sequence", "job")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    job: PredictionJob
    def __init__(self, sequence: _Optional[int] = ..., job: _Optional[_Union[PredictionJob, _Mapping]] = ...) -> None: ...

class CancelPredictionJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelPredictionJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: PredictionJob
    def __init__(self, job: _Optional[_Union[PredictionJob, _Mapping]] = ...) -> None: ...

class DeletePredictionJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeletePredictionJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
