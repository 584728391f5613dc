from __future__ import annotations

from typing import Any

import pytest

from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.hyperparameters import hyperparameters_of


@pytest.mark.parametrize(
    ("scales", "cross_attention", "options", "heads"),
    [
        (("5x", "20x"), "nested", {}, 8),
        (("5x", "20x"), "none", {}, 1),
        (("20x",), "nested", {}, 1),
        (("20x",), "none", {}, 1),
        (("20x",), "global", {}, 1),
        (("5x", "20x"), "nested", {"heads": 3}, 3),
        (("20x",), "nested", {"heads": 3}, 3),
    ],
)
def test_there_are_eight_heads_where_scales_attend_to_each_other(
    scales: tuple[str, ...], cross_attention: str, options: dict[str, Any], heads: int
) -> None:
    found = hyperparameters_of(
        make_config(**options),
        scales=scales,
        feature_dim=6,
        n_classes=2,
        cross_attention=cross_attention,
    )
    assert found["heads"] == heads
