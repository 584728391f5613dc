"""Exports in these tests compare small bags with the model; those of full size are in the long tests."""

from __future__ import annotations

import pytest

ALL_BAGS = (1, 2, 7, 513, 4_096, 16_384)


@pytest.fixture(autouse=True, scope="module")
def all_exports_compare_less(small_parity_bags: None) -> None:
    """In every file of this folder."""
