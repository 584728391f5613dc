"""Leaves: the request or configuration is wrong."""

from __future__ import annotations

from cmamil_sdk.errors.branches import UsageError


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


__all__ = [
    "ConfigInvalid",
    "FieldInvalid",
    "LabelsInvalid",
    "ModelExists",
    "OutputExists",
    "OutputUnwritable",
    "RequestIdReused",
    "RequestTooLarge",
    "RequestUnsupported",
    "ScaleMismatch",
    "SlideIdDuplicate",
]
