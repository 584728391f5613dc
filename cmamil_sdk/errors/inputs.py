"""Leaves: an input file cannot be used."""

from __future__ import annotations

from cmamil_sdk.errors.branches import InputError


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


__all__ = [
    "BundleCorrupt",
    "BundleNotFound",
    "BundlePathForbidden",
    "BundleUnsupported",
    "FeatureFileInvalid",
    "FeatureFileUnreadable",
    "MppUnknown",
    "MppUnusable",
    "NoTissue",
    "ParityFailed",
    "ProvenanceUnknown",
    "RecipeMismatch",
    "RunInvalid",
    "SlideCorrupt",
    "SlideFormatUnsupported",
    "SlideHashMismatch",
    "SlideNotFound",
    "SlideTooLarge",
    "SlideUnreadable",
    "SlideUriForbidden",
    "TissueMaskInvalid",
    "TooManyTiles",
    "UploadIncomplete",
]
