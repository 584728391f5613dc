"""The root of the tree and its branches."""

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


class InputError(CmamilError):
    """An input file cannot be used."""

    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class CapabilityError(CmamilError):
    """This machine or server cannot do it now."""

    exit_code = 4
    grpc_status = "FAILED_PRECONDITION"


class InternalError(CmamilError):
    """A fault of ours."""


__all__ = [
    "CapabilityError",
    "CmamilError",
    "InputError",
    "InternalError",
    "UsageError",
]
