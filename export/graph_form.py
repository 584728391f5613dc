"""What decides the form of every graph of this package; kept apart, because it needs no torch."""

from __future__ import annotations

OPSET = 20

GRAPH_FORM = 4
"""Counts up when the graph around a tile network changes."""

__all__ = ["GRAPH_FORM", "OPSET"]
