"""Numbers that carry their unit in their type."""

from __future__ import annotations

from typing import NewType

MicronsPerPixel = NewType("MicronsPerPixel", float)
"""Edge length of one pixel in micrometres; smaller is a higher magnification (0.5 is about 20x)."""

__all__ = ["MicronsPerPixel"]
