"""Leaves: this machine or server cannot do it now."""

from __future__ import annotations

from cmamil_sdk.errors.branches import CapabilityError


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


__all__ = [
    "CertificateRefused",
    "DeadlineExceeded",
    "DeadlineTooShort",
    "DependencyMissing",
    "EngineMissing",
    "GpuOutOfMemory",
    "JobFinished",
    "JobNotFound",
    "JobsDisabled",
    "JobsUnavailable",
    "MemoryTooSmall",
    "MessageTooLarge",
    "ModelNeeded",
    "ModelNotFound",
    "ModelNotReady",
    "QueueFull",
    "ReaderMissing",
    "RoleMissing",
    "ServerDraining",
    "ServerUnreachable",
    "TokenInvalid",
    "UploadsDisabled",
    "UploadsFull",
    "WeightsMissing",
]
