"""Bags that are too large or hold no numbers: refused before the aggregator runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cmamil_sdk.bundle.bags import MAX_TILES, check_finite, check_size
from cmamil_sdk.errors import NonFiniteOutput, TooManyTiles


def manifest(kind: str, attention_rows: int | None = None) -> Any:
    return SimpleNamespace(
        model_kind=kind,
        hyperparameters={"cross_attention": kind},
        attention_rows=attention_rows,
    )


@pytest.mark.parametrize(
    ("kind", "counts", "refused"),
    [
        ("global", (1_000, 4_000, 16_000), False),
        ("global", (10_000, 40_000, 160_000), True),
        ("nested-bias", (1_000, 4_000, 16_000), False),
        ("nested-bias", (10_000, 40_000, 160_000), True),
        ("nested", (10_000, 40_000, 160_000), False),
        ("global", (16_000,), False),
        ("global", (160_000,), True),
        ("nested-bias", (160_000,), False),
        ("torchmil:TransformerABMIL", (7_000,), False),
        ("torchmil:TransformerABMIL", (8_000,), True),
    ],
)
def test_graphs_that_hold_all_scores_are_bounded_and_those_in_blocks_are_not(kind, counts, refused):
    bag = {str(position): count for position, count in enumerate(counts)}
    if refused:
        with pytest.raises(TooManyTiles, match=r"a\.svs has .* nested attention"):
            check_size(bag, manifest(kind), slide="a.svs", max_attention_mib=4096)
    else:
        check_size(bag, manifest(kind), slide="a.svs", max_attention_mib=4096)
    check_size(bag, manifest(kind, 256), slide="a.svs", max_attention_mib=3072)


@pytest.mark.parametrize("kind", ["nested", "global", "abmil", "torchmil:TransMIL"])
def test_no_graph_takes_more_tiles_than_it_was_exported_for(kind):
    largest = {"5x": 1, "20x": MAX_TILES}
    check_size(largest, manifest(kind, 256), slide="a.svs", max_attention_mib=3072)
    largest["20x"] += 1
    with pytest.raises(TooManyTiles, match=r"a\.svs has 1048577 tiles at 20x, .* takes 1048576"):
        check_size(largest, manifest(kind, 256), slide="a.svs", max_attention_mib=3072)


@pytest.mark.parametrize("values", [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)])
def test_what_is_no_number_is_named(values):
    features = {"5x": np.ones((2, 4), np.float32), "20x": np.ones((9, 4), np.float32)}
    bag: Any = SimpleNamespace(slide_id="s", features=features)
    check_finite(bag)
    features["20x"][7, : len(values)] = values
    with pytest.raises(NonFiniteOutput, match="Slide s, scale 20x, row 7: a feature is NaN"):
        check_finite(bag)


def test_large_numbers_are_numbers():
    bag: Any = SimpleNamespace(slide_id="s", features={"20x": np.full((9, 4), 3e38, np.float32)})
    check_finite(bag)
