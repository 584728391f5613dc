"""Numbers that carry their unit and reference frame in their type."""

from __future__ import annotations

from typing import NewType

MicronsPerPixel = NewType("MicronsPerPixel", float)
"""Edge length of one pixel in micrometres; smaller is a higher magnification (0.5 is about 20x)."""

Level0Px = NewType("Level0Px", float)
"""A length or coordinate in pixels of the slide's level 0, from its top left corner."""

LevelPx = NewType("LevelPx", int)
"""A length or coordinate in pixels of one stored pyramid level, from its top left corner."""
