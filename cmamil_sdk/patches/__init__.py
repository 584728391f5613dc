"""Tiles as JPEG files on disk, in CMA-MIL's tree: written from slides, and read for features."""

from __future__ import annotations
