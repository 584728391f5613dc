"""Tile encoders: what turns a tile into a feature vector, and what is known about each."""

from __future__ import annotations
