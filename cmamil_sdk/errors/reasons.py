"""Errors by the names that cross a wire."""

from __future__ import annotations

from cmamil_sdk.errors.branches import CmamilError
from cmamil_sdk.errors.internal import UnexpectedError


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


__all__ = [
    "error_from_reason",
    "leaf_errors",
]
