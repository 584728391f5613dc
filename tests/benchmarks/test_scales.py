"""The scales' benchmark: the same tiles in three ways, and how far their pixels are apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.benchmarks.scales import ScalesBench, measure_scales
from cmamil_sdk.errors import FieldInvalid


def test_scales_with_a_stored_level_differ_and_the_others_do_not(synthetic_slide: Path) -> None:
    """The slide stores 20x and 5x; the second compression of 5x shows."""
    document = measure_scales(ScalesBench(slide=synthetic_slide, pairs=5))
    assert document["slide"]["downsamples"][:2] == [1.0, 4.0]
    scales = document["scales"]
    assert {name: found["tiles"] for name, found in scales.items()} == {
        "5x": 4,
        "10x": 12,
        "20x": 36,
    }
    assert [found["stored_level"] for found in scales.values()] == [1, 0, 0]
    assert 0 < scales["5x"]["mean_difference"] < 10
    assert scales["10x"]["mean_difference"] == scales["20x"]["mean_difference"] == 0
    stored, alone = document["rows"]
    assert (stored["way"], alone["way"]) == ("stored levels", "one scale after another")
    for row in (stored, alone):
        assert row["pairs"] == 5
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_too_few_pairs_are_refused(synthetic_slide: Path) -> None:
    with pytest.raises(FieldInvalid, match="at least 5"):
        ScalesBench(slide=synthetic_slide, pairs=4)
