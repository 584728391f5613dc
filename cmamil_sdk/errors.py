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

import re
from typing import ClassVar


class CmamilError(Exception):
    """Base of every error the SDK raises on purpose; ``str(error)`` is the sentence for the user."""

    exit_code: ClassVar[int] = 5
    grpc_status: ClassVar[str] = "INTERNAL"

    @property
    def reason(self) -> str:
        """UPPER_SNAKE name of the leaf, for example ``SLIDE_NOT_FOUND``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).upper()


class UsageError(CmamilError):
    """The request, option or configuration is wrong."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class FieldInvalid(UsageError):
    """An option or request field has a value that makes no sense."""


class ConfigInvalid(UsageError):
    """A configuration file has an unknown key or a value out of range."""


class LabelsInvalid(UsageError):
    """A labels or splits table names missing, double or too few slides."""


class SlideIdDuplicate(UsageError):
    """Two files of one run have the same slide id."""


class OutputExists(UsageError):
    """The output is already there and would be overwritten."""

    grpc_status = "ALREADY_EXISTS"


class OutputUnwritable(UsageError):
    """The folder for the output cannot be made or written to."""


class ScaleMismatch(UsageError):
    """The scales asked for do not nest, or are not those of the model."""


class ModelExists(UsageError):
    """A server has a model of that name and version, with other content."""

    grpc_status = "ALREADY_EXISTS"


class RequestTooLarge(UsageError):
    """A request holds more tiles than a server takes in one call."""

    grpc_status = "OUT_OF_RANGE"


class RequestIdReused(UsageError):
    """The id of a request came with another request before."""

    grpc_status = "ALREADY_EXISTS"


class RequestUnsupported(UsageError):
    """A request asks for something that its protocol knows and this server does not do."""

    grpc_status = "UNIMPLEMENTED"


class InputError(CmamilError):
    """An input file cannot be used."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class SlideNotFound(InputError):
    """There is no slide at that path."""

    grpc_status = "NOT_FOUND"


class SlideUriForbidden(InputError):
    """The slide's address is outside the roots a server may read."""

    grpc_status = "PERMISSION_DENIED"


class SlideUnreadable(InputError):
    """The operating system does not let this process read the slide."""

    grpc_status = "PERMISSION_DENIED"


class SlideFormatUnsupported(InputError):
    """No reader on this machine understands the file."""

    grpc_status = "INVALID_ARGUMENT"


class SlideCorrupt(InputError):
    """The file is a slide, but its pixels cannot be decoded."""

    grpc_status = "DATA_LOSS"


class SlideHashMismatch(InputError):
    """The slide's sha256 is not the one the request expects."""


class UploadIncomplete(InputError):
    """An upload ended before all of its slide had come."""

    grpc_status = "DATA_LOSS"


class SlideTooLarge(InputError):
    """The slide is larger than the limits allow."""


class TooManyTiles(InputError):
    """The slide has more tiles than the limits allow."""


class MppUnknown(InputError):
    """The slide does not say its microns per pixel."""


class MppUnusable(InputError):
    """The slide's microns per pixel are absurd, anisotropic, or coarser than the model needs."""


class NoTissue(InputError):
    """No tile of the slide holds enough tissue."""


class TissueMaskInvalid(InputError):
    """A tissue mask is missing, cannot be read, or is not of the slide's shape."""


class FeatureFileInvalid(InputError):
    """A feature file is missing parts or holds impossible values."""


class FeatureFileUnreadable(InputError):
    """The operating system does not let this process read the features."""

    grpc_status = "PERMISSION_DENIED"


class RecipeMismatch(InputError):
    """Features were made by another recipe than the model's."""


class ProvenanceUnknown(InputError):
    """A model was trained on features that do not say how they were made."""


class RunInvalid(InputError):
    """A run directory is incomplete or damaged."""


class BundlePathForbidden(InputError):
    """The bundle's path is outside the roots that a server may load bundles from."""

    grpc_status = "PERMISSION_DENIED"


class BundleNotFound(InputError):
    """There is no bundle at that path beneath a root."""

    grpc_status = "NOT_FOUND"


class BundleCorrupt(InputError):
    """A bundle's file is missing or its hash differs from the manifest."""

    grpc_status = "DATA_LOSS"


class BundleUnsupported(InputError):
    """A bundle has a schema or content that this version does not know."""


class ParityFailed(InputError):
    """An exported graph does not reproduce its model."""


class CapabilityError(CmamilError):
    """This machine or server cannot do it now."""

    exit_code = 4
    grpc_status = "FAILED_PRECONDITION"


class DependencyMissing(CapabilityError):
    """A Python package that this command needs is not installed."""


class ReaderMissing(CapabilityError):
    """What a reader of slides needs is not on this machine: a package, or a GPU to decode on."""


class WeightsMissing(CapabilityError):
    """The weights of an encoder are not on this machine and cannot be fetched."""


class EngineMissing(CapabilityError):
    """The inference engine or device asked for is not available."""


class ModelNotFound(CapabilityError):
    """The server has no model of that name."""

    grpc_status = "NOT_FOUND"


class ModelNotReady(CapabilityError):
    """The model is still loading."""

    grpc_status = "UNAVAILABLE"


class ModelNeeded(CapabilityError):
    """The model cannot be unloaded: it is the default of several versions, or the only model."""


class ServerUnreachable(CapabilityError):
    """No server answers at that address, or it is not serving."""

    grpc_status = "UNAVAILABLE"


class ServerDraining(CapabilityError):
    """The server is shutting down and takes no new work."""

    grpc_status = "UNAVAILABLE"


class CertificateRefused(CapabilityError):
    """Client and server do not accept each other's TLS certificate, so no call was made."""

    grpc_status = "UNAVAILABLE"


class TokenInvalid(CapabilityError):
    """The server wants a bearer token and got none, or one that it does not know."""

    grpc_status = "UNAUTHENTICATED"


class RoleMissing(CapabilityError):
    """The server knows the caller, who has none of the roles that the method is for."""

    grpc_status = "PERMISSION_DENIED"


class QueueFull(CapabilityError):
    """The server has as much work as it accepts, from all or from this client."""

    grpc_status = "RESOURCE_EXHAUSTED"


class UploadsDisabled(CapabilityError):
    """The server takes no uploads."""


class UploadsFull(CapabilityError):
    """The server has no room for another uploaded slide."""

    grpc_status = "RESOURCE_EXHAUSTED"


class MessageTooLarge(CapabilityError):
    """A message is larger than the server accepts."""

    grpc_status = "RESOURCE_EXHAUSTED"


class MemoryTooSmall(CapabilityError):
    """A process was killed, as systems do when memory runs out."""

    grpc_status = "RESOURCE_EXHAUSTED"


class GpuOutOfMemory(CapabilityError):
    """A GPU has too little memory left, for a single tile too."""

    grpc_status = "RESOURCE_EXHAUSTED"


class DeadlineTooShort(CapabilityError):
    """The deadline leaves less time than the work can take, so it was not begun."""

    grpc_status = "DEADLINE_EXCEEDED"


class DeadlineExceeded(CapabilityError):
    """The deadline passed before the work was done."""

    grpc_status = "DEADLINE_EXCEEDED"


class JobNotFound(CapabilityError):
    """The server has no job of that name, or not one of this caller."""

    grpc_status = "NOT_FOUND"


class JobFinished(CapabilityError):
    """The job has ended, so that there is nothing left to cancel."""


class JobsDisabled(CapabilityError):
    """The server is not configured to keep jobs."""


class JobsUnavailable(CapabilityError):
    """The server cannot read or write its jobs now, as when its disk is full."""

    grpc_status = "UNAVAILABLE"


class InternalError(CmamilError):
    """A fault of ours."""


class DecoderCrashed(InternalError):
    """The process that decoded the slide died, twice, on this slide alone."""


class NonFiniteOutput(InternalError):
    """The model's output holds NaN or infinity."""


class SelfTestFailed(InternalError):
    """A bundle's golden test does not reproduce on this engine."""


class UnexpectedError(InternalError):
    """Anything not foreseen; the log holds the traceback."""


def leaf_errors() -> dict[str, type[CmamilError]]:
    """Map each leaf's ``reason`` to its class; used to rebuild errors that crossed a wire."""
    leaves: dict[str, type[CmamilError]] = {}
    stack: list[type[CmamilError]] = [CmamilError]
    while stack:
        cls = stack.pop()
        children = cls.__subclasses__()
        stack.extend(children)
        if not children:
            leaves[cls("").reason] = cls
    return leaves


def error_from_reason(reason: str, message: str) -> CmamilError:
    """Rebuild the leaf named ``reason``, or :class:`UnexpectedError` for a name not known here."""
    return leaf_errors().get(reason, UnexpectedError)(message)
