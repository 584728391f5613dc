"""This package beside other tools that turn a slide into features (docs/performance.md)."""

from __future__ import annotations
