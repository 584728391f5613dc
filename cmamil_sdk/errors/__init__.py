"""Every error the SDK raises on purpose, as one tree.

A leaf is one cause that a user can fix. Its ``reason`` is the UPPER_SNAKE form of its name, the same
on the command line and in gRPC's ``ErrorInfo``; its ``exit_code`` and ``grpc_status`` are fixed.

::

    CmamilError
    ├── UsageError                    exit 2   the request or configuration is wrong
    │   ├── FieldInvalid              INVALID_ARGUMENT
    │   ├── ConfigInvalid             INVALID_ARGUMENT
    │   ├── LabelsInvalid             INVALID_ARGUMENT
    │   ├── SlideIdDuplicate          INVALID_ARGUMENT
    │   ├── OutputExists              ALREADY_EXISTS
    │   ├── OutputUnwritable          INVALID_ARGUMENT
    │   ├── ScaleMismatch             INVALID_ARGUMENT
    │   ├── ModelExists               ALREADY_EXISTS
    │   ├── RequestTooLarge           OUT_OF_RANGE
    │   ├── RequestIdReused           ALREADY_EXISTS
    │   └── RequestUnsupported        UNIMPLEMENTED
    ├── InputError                    exit 3   an input file cannot be used
    │   ├── SlideNotFound             NOT_FOUND
    │   ├── SlideUriForbidden         PERMISSION_DENIED
    │   ├── SlideUnreadable           PERMISSION_DENIED
    │   ├── SlideFormatUnsupported    INVALID_ARGUMENT
    │   ├── SlideCorrupt              DATA_LOSS
    │   ├── SlideHashMismatch         FAILED_PRECONDITION
    │   ├── UploadIncomplete          DATA_LOSS
    │   ├── SlideTooLarge             FAILED_PRECONDITION
    │   ├── TooManyTiles              FAILED_PRECONDITION
    │   ├── MppUnknown                FAILED_PRECONDITION
    │   ├── MppUnusable               FAILED_PRECONDITION
    │   ├── NoTissue                  FAILED_PRECONDITION
    │   ├── TissueMaskInvalid         FAILED_PRECONDITION
    │   ├── FeatureFileInvalid        FAILED_PRECONDITION
    │   ├── FeatureFileUnreadable     PERMISSION_DENIED
    │   ├── RecipeMismatch            FAILED_PRECONDITION
    │   ├── ProvenanceUnknown         FAILED_PRECONDITION
    │   ├── RunInvalid                FAILED_PRECONDITION
    │   ├── BundlePathForbidden       PERMISSION_DENIED
    │   ├── BundleNotFound            NOT_FOUND
    │   ├── BundleCorrupt             DATA_LOSS
    │   ├── BundleUnsupported         FAILED_PRECONDITION
    │   └── ParityFailed              FAILED_PRECONDITION
    ├── CapabilityError               exit 4   this machine or server cannot do it now
    │   ├── DependencyMissing         FAILED_PRECONDITION
    │   ├── ReaderMissing             FAILED_PRECONDITION
    │   ├── WeightsMissing            FAILED_PRECONDITION
    │   ├── EngineMissing             FAILED_PRECONDITION
    │   ├── ModelNotFound             NOT_FOUND
    │   ├── ModelNotReady             UNAVAILABLE
    │   ├── ModelNeeded               FAILED_PRECONDITION
    │   ├── ServerUnreachable         UNAVAILABLE
    │   ├── ServerDraining            UNAVAILABLE
    │   ├── CertificateRefused        UNAVAILABLE
    │   ├── TokenInvalid              UNAUTHENTICATED
    │   ├── RoleMissing               PERMISSION_DENIED
    │   ├── QueueFull                 RESOURCE_EXHAUSTED
    │   ├── UploadsDisabled           FAILED_PRECONDITION
    │   ├── UploadsFull               RESOURCE_EXHAUSTED
    │   ├── MessageTooLarge           RESOURCE_EXHAUSTED
    │   ├── MemoryTooSmall            RESOURCE_EXHAUSTED
    │   ├── GpuOutOfMemory            RESOURCE_EXHAUSTED
    │   ├── DeadlineTooShort          DEADLINE_EXCEEDED
    │   ├── DeadlineExceeded          DEADLINE_EXCEEDED
    │   ├── JobNotFound               NOT_FOUND
    │   ├── JobFinished               FAILED_PRECONDITION
    │   ├── JobsDisabled              FAILED_PRECONDITION
    │   └── JobsUnavailable           UNAVAILABLE
    └── InternalError                 exit 5   a fault of ours
        ├── DecoderCrashed            INTERNAL
        ├── NonFiniteOutput           INTERNAL
        ├── SelfTestFailed            INTERNAL
        └── UnexpectedError           INTERNAL

Messages are one sentence: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

from cmamil_sdk.errors.branches import (
    CapabilityError,
    CmamilError,
    InputError,
    InternalError,
    UsageError,
)
from cmamil_sdk.errors.capabilities import (
    CertificateRefused,
    DeadlineExceeded,
    DeadlineTooShort,
    DependencyMissing,
    EngineMissing,
    GpuOutOfMemory,
    JobFinished,
    JobNotFound,
    JobsDisabled,
    JobsUnavailable,
    MemoryTooSmall,
    MessageTooLarge,
    ModelNeeded,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
    ReaderMissing,
    RoleMissing,
    ServerDraining,
    ServerUnreachable,
    TokenInvalid,
    UploadsDisabled,
    UploadsFull,
    WeightsMissing,
)
from cmamil_sdk.errors.inputs import (
    BundleCorrupt,
    BundleNotFound,
    BundlePathForbidden,
    BundleUnsupported,
    FeatureFileInvalid,
    FeatureFileUnreadable,
    MppUnknown,
    MppUnusable,
    NoTissue,
    ParityFailed,
    ProvenanceUnknown,
    RecipeMismatch,
    RunInvalid,
    SlideCorrupt,
    SlideFormatUnsupported,
    SlideHashMismatch,
    SlideNotFound,
    SlideTooLarge,
    SlideUnreadable,
    SlideUriForbidden,
    TissueMaskInvalid,
    TooManyTiles,
    UploadIncomplete,
)
from cmamil_sdk.errors.internal import (
    DecoderCrashed,
    NonFiniteOutput,
    SelfTestFailed,
    UnexpectedError,
)
from cmamil_sdk.errors.reasons import (
    error_from_reason,
    leaf_errors,
)
from cmamil_sdk.errors.usage import (
    ConfigInvalid,
    FieldInvalid,
    LabelsInvalid,
    ModelExists,
    OutputExists,
    OutputUnwritable,
    RequestIdReused,
    RequestTooLarge,
    RequestUnsupported,
    ScaleMismatch,
    SlideIdDuplicate,
)

__all__ = [
    "BundleCorrupt",
    "BundleNotFound",
    "BundlePathForbidden",
    "BundleUnsupported",
    "CapabilityError",
    "CertificateRefused",
    "CmamilError",
    "ConfigInvalid",
    "DeadlineExceeded",
    "DeadlineTooShort",
    "DecoderCrashed",
    "DependencyMissing",
    "EngineMissing",
    "FeatureFileInvalid",
    "FeatureFileUnreadable",
    "FieldInvalid",
    "GpuOutOfMemory",
    "InputError",
    "InternalError",
    "JobFinished",
    "JobNotFound",
    "JobsDisabled",
    "JobsUnavailable",
    "LabelsInvalid",
    "MemoryTooSmall",
    "MessageTooLarge",
    "ModelExists",
    "ModelNeeded",
    "ModelNotFound",
    "ModelNotReady",
    "MppUnknown",
    "MppUnusable",
    "NoTissue",
    "NonFiniteOutput",
    "OutputExists",
    "OutputUnwritable",
    "ParityFailed",
    "ProvenanceUnknown",
    "QueueFull",
    "ReaderMissing",
    "RecipeMismatch",
    "RequestIdReused",
    "RequestTooLarge",
    "RequestUnsupported",
    "RoleMissing",
    "RunInvalid",
    "ScaleMismatch",
    "SelfTestFailed",
    "ServerDraining",
    "ServerUnreachable",
    "SlideCorrupt",
    "SlideFormatUnsupported",
    "SlideHashMismatch",
    "SlideIdDuplicate",
    "SlideNotFound",
    "SlideTooLarge",
    "SlideUnreadable",
    "SlideUriForbidden",
    "TissueMaskInvalid",
    "TokenInvalid",
    "TooManyTiles",
    "UnexpectedError",
    "UploadIncomplete",
    "UploadsDisabled",
    "UploadsFull",
    "UsageError",
    "WeightsMissing",
    "error_from_reason",
    "leaf_errors",
]
