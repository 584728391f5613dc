"""Defaults of folds that are made by lot; options show them without importing the configuration."""

from __future__ import annotations

DEFAULT_FOLDS, DEFAULT_VAL_SHARE, DEFAULT_TEST_SHARE = 5, 0.15, 0.2
"""CMA-MIL's published folds have 15 % of what is not tested in val."""

__all__ = ["DEFAULT_FOLDS", "DEFAULT_TEST_SHARE", "DEFAULT_VAL_SHARE"]
