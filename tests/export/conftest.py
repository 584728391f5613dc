"""Exports in these tests compare small bags with the model; those of full size are in the long tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

ALL_BAGS = (1, 2, 7, 513, 4_096, 16_384)


@pytest.fixture(autouse=True, scope="module")
def small_parity_bags() -> Iterator[None]:
    """None of the two largest."""
    from cmamil_sdk.export import aggregator

    assert aggregator.PARITY_FINEST_TILES == ALL_BAGS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregator, "PARITY_FINEST_TILES", ALL_BAGS[:-2])
        yield
