"""Words of messages that depend on numbers."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun, whose plural takes an s: ``1 slide``, ``2 slides``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


__all__ = ["counted"]
