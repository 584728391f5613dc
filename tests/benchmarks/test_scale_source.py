"""The benchmark of scale sources: the same tiles from both, and how far their pixels are apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmamil_sdk.benchmarks.scale_source import ScaleSourceBench, measure_scale_sources
from cmamil_sdk.errors import FieldInvalid


def test_scales_with_a_stored_level_differ_and_the_others_do_not(synthetic_slide: Path) -> None:
    """The slide stores 20x and 5x; the second compression of 5x shows."""
    seen: list[int] = []
    document = measure_scale_sources(
        ScaleSourceBench(slide=synthetic_slide, pairs=5), on_pair=seen.append
    )
    assert seen == [1, 2, 3, 4, 5]
    assert document["slide"]["downsamples"][:2] == [1.0, 4.0]
    scales = document["scales"]
    tiles = {name: found["tiles"] for name, found in scales.items()}
    assert tiles == {"5x": 4, "10x": 12, "20x": 36}
    assert [found["stored_level"] for found in scales.values()] == [1, 0, 0]
    assert 0 < scales["5x"]["mean_difference"] < 10
    assert scales["10x"]["mean_difference"] == scales["20x"]["mean_difference"] == 0
    assert 0 < document["ratio_low"] <= document["ratio"] <= document["ratio_high"]


def test_too_few_pairs_are_refused(synthetic_slide: Path) -> None:
    with pytest.raises(FieldInvalid, match="at least 5"):
        ScaleSourceBench(slide=synthetic_slide, pairs=4)
