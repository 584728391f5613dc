"""Latency and throughput, measured so that the figures can be repeated (docs/performance.md)."""

from __future__ import annotations
