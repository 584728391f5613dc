"""Tile features of a slide: the bag, its file, and the pipeline that makes them."""

from __future__ import annotations
