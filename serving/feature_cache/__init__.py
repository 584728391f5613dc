"""Features of whole slides on disk, found again by content."""

from __future__ import annotations

from .cache import FeatureCache

__all__ = ["FeatureCache"]
