"""Open any slide, say what it is, and read its pixels."""

from __future__ import annotations

from cmamil_sdk.slides.base import Level, SlideFacts, SlideReader
from cmamil_sdk.slides.open import ReaderName, open_slide

__all__ = ["Level", "ReaderName", "SlideFacts", "SlideReader", "open_slide"]
