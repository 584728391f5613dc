"""Leaves: a fault of ours."""

from __future__ import annotations

from cmamil_sdk.errors.branches import InternalError


class DecoderCrashed(InternalError):
    """The process that decoded the slide died, twice, on this slide alone."""


class NonFiniteOutput(InternalError):
    """The model's output holds NaN or infinity."""


class SelfTestFailed(InternalError):
    """A bundle's golden test does not reproduce on this engine."""


class UnexpectedError(InternalError):
    """Anything not foreseen; the log holds the traceback."""


__all__ = [
    "DecoderCrashed",
    "NonFiniteOutput",
    "SelfTestFailed",
    "UnexpectedError",
]
