import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MppSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MPP_SOURCE_UNSPECIFIED: _ClassVar[MppSource]
    MPP_SOURCE_METADATA: _ClassVar[MppSource]
    MPP_SOURCE_OVERRIDE: _ClassVar[MppSource]
    MPP_SOURCE_UNKNOWN: _ClassVar[MppSource]
MPP_SOURCE_UNSPECIFIED: MppSource
MPP_SOURCE_METADATA: MppSource
MPP_SOURCE_OVERRIDE: MppSource
MPP_SOURCE_UNKNOWN: MppSource

class SlideSource(_message.Message):
    __slots__ = ("uri", "slide_id", "expected_sha256")
    URI_FIELD_NUMBER: _ClassVar[int]
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SHA256_FIELD_NUMBER: _ClassVar[int]
    uri: str
    slide_id: str
    expected_sha256: str
    def __init__(self, uri: _Optional[str] = ..., slide_id: _Optional[str] = ..., expected_sha256: _Optional[str] = ...) -> None: ...

class TilingOptions(_message.Message):
    __slots__ = ("mpp_override",)
    MPP_OVERRIDE_FIELD_NUMBER: _ClassVar[int]
    mpp_override: float
    def __init__(self, mpp_override: _Optional[float] = ...) -> None: ...

class SlideLevel(_message.Message):
    __slots__ = ("width", "height", "downsample")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DOWNSAMPLE_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    downsample: float
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., downsample: _Optional[float] = ...) -> None: ...

class ScaleTiles(_message.Message):
    __slots__ = ("scale", "tiles", "level")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    scale: str
    tiles: int
    level: int
    def __init__(self, scale: _Optional[str] = ..., tiles: _Optional[int] = ..., level: _Optional[int] = ...) -> None: ...

class InspectSlideRequest(_message.Message):
    __slots__ = ("slide", "tiling", "model")
    SLIDE_FIELD_NUMBER: _ClassVar[int]
    TILING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    slide: SlideSource
    tiling: TilingOptions
    model: str
    def __init__(self, slide: _Optional[_Union[SlideSource, _Mapping]] = ..., tiling: _Optional[_Union[TilingOptions, _Mapping]] = ..., model: _Optional[str] = ...) -> None: ...

class InspectSlideResponse(_message.Message):
    __slots__ = ("slide_id", "sha256", "width", "height", "levels", "mpp", "mpp_source", "objective_power", "vendor", "compression", "reader", "reader_reason", "tissue_fraction", "tiles", "warnings")
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    MPP_FIELD_NUMBER: _ClassVar[int]
    MPP_SOURCE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_POWER_FIELD_NUMBER: _ClassVar[int]
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    READER_REASON_FIELD_NUMBER: _ClassVar[int]
    TISSUE_FRACTION_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    slide_id: str
    sha256: str
    width: int
    height: int
    levels: _containers.RepeatedCompositeFieldContainer[SlideLevel]
    mpp: float
    mpp_source: MppSource
    objective_power: float
    vendor: str
    compression: str
    reader: str
    reader_reason: str
    tissue_fraction: float
    tiles: _containers.RepeatedCompositeFieldContainer[ScaleTiles]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slide_id: _Optional[str] = ..., sha256: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., levels: _Optional[_Iterable[_Union[SlideLevel, _Mapping]]] = ..., mpp: _Optional[float] = ..., mpp_source: _Optional[_Union[MppSource, str]] = ..., objective_power: _Optional[float] = ..., vendor: _Optional[str] = ..., compression: _Optional[str] = ..., reader: _Optional[str] = ..., reader_reason: _Optional[str] = ..., tissue_fraction: _Optional[float] = ..., tiles: _Optional[_Iterable[_Union[ScaleTiles, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class UploadMetadata(_message.Message):
    __slots__ = ("filename", "size_bytes", "sha256")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    filename: str
    size_bytes: int
    sha256: str
    def __init__(self, filename: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadSlideRequest(_message.Message):
    __slots__ = ("metadata", "chunk")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    metadata: UploadMetadata
    chunk: bytes
    def __init__(self, metadata: _Optional[_Union[UploadMetadata, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadSlideResponse(_message.Message):
    __slots__ = ("slide_id", "expire_time")
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    slide_id: str
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, slide_id: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeleteSlideRequest(_message.Message):
    __slots__ = ("slide_id",)
    SLIDE_ID_FIELD_NUMBER: _ClassVar[int]
    slide_id: str
    def __init__(self, slide_id: _Optional[str] = ...) -> None: ...

class DeleteSlideResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
