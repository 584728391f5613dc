"""The edge density of a tile against Pillow's filter and known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageStat

from cmamil_sdk.tiling.edge_density import EDGE_DENSITY_THRESHOLD, edge_density


def by_pillow(tile: np.ndarray, tile_size_px: int) -> float:
    edges = Image.fromarray(tile).filter(ImageFilter.FIND_EDGES)
    return float(np.mean(ImageStat.Stat(edges).sum) / tile_size_px**2)


def grey(value: int, shape: tuple[int, int] = (224, 224)) -> np.ndarray:
    return np.full((*shape, 3), value, dtype=np.uint8)


@pytest.mark.parametrize(
    ("value", "score"), [(255, 4.533242984693878), (240, 4.266581632653061), (0, 0.0)]
)
def test_flat_tiles_score_their_border(value, score):
    assert edge_density(grey(value), tile_size_px=224) == pytest.approx(score, rel=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_it_is_pillows_filter(height, width, seed):
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert edge_density(tile, tile_size_px=40) == pytest.approx(by_pillow(tile, 40), rel=1e-12)


def test_noise_decides_at_the_published_threshold():
    rng = np.random.default_rng(0)

    def score(sd: float) -> float:
        tile = np.clip(235 + rng.normal(0, sd, (224, 224, 3)), 0, 255).round().astype(np.uint8)
        return edge_density(tile, tile_size_px=224)

    assert score(3) < EDGE_DENSITY_THRESHOLD < score(4)


def test_a_part_of_a_tile_counts_less_unless_its_own_area_is_asked_for():
    strip = np.random.default_rng(0).integers(0, 256, (224, 56, 3), dtype=np.uint8)
    as_published = edge_density(strip, tile_size_px=224)
    assert edge_density(strip, tile_size_px=None) == pytest.approx(4 * as_published)


def test_an_empty_tile_scores_nothing():
    assert edge_density(grey(255, (0, 224)), tile_size_px=224) == 0.0
    assert edge_density(grey(255, (0, 0)), tile_size_px=None) == 0.0
