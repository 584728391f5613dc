"""CMA-MIL and HMIL for whole-slide images: train, export, serve and measure."""

from __future__ import annotations

__version__ = "0.1.0"
