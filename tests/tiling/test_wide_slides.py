"""Slides of few rows and very many columns: no read asks for more memory than any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmamil_sdk.slides import SlideFacts, open_slide
from cmamil_sdk.slides.base import Level
from cmamil_sdk.slides.thumbnail import bounds_thumbnail
from cmamil_sdk.tiling import low_power
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

LARGEST_PX = 2**23


class Drawn:
    """A slide whose pixels follow from where they are; remembers the largest region asked for."""

    def __init__(self, facts: SlideFacts, width: int, height: int) -> None:
        self.facts = replace(
            facts,
            width=width,
            height=height,
            bounds=(0, 0, width, height),
            levels=(Level(width, height, 1.0),),
        )
        self.largest_px = 0

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        assert level == 0
        self.largest_px = max(self.largest_px, width * height)
        columns = (np.arange(x, x + width) // 50 * 37 % 251).astype(np.uint8)
        rows = (np.arange(y, y + height) // 20 * 11 % 251).astype(np.uint8)
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = columns, rows[:, None], 77
        return pixels


@pytest.fixture
def facts(synthetic_slide) -> SlideFacts:
    with open_slide(synthetic_slide) as reader:
        return reader.facts


@pytest.mark.parametrize(("width", "height"), [(200_000, 60), (60, 200_000)])
def test_tissue_is_looked_for_in_pieces(facts, width, height):
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"))
    slide = Drawn(facts, width, height)
    geometry = read_geometry(slide.facts, recipe)
    grid = low_power.cell_grid(recipe, geometry)
    overview = low_power.read_overview(slide, geometry, grid)
    assert 0 < slide.largest_px <= LARGEST_PX
    assert overview.rgb.shape[:2] == grid.shape
    assert not overview.lost.any()


def test_pieces_are_what_the_whole_would_be(facts, monkeypatch):
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"))
    for mpp in (0.5, 0.43):  # cells of whole pixels and of fractions
        slide = Drawn(replace(facts, mpp=mpp), 9000, 500)
        geometry = read_geometry(slide.facts, recipe)
        grid = low_power.cell_grid(recipe, geometry)
        whole = low_power.read_overview(slide, geometry, grid).rgb
        with monkeypatch.context() as patch:
            patch.setattr(low_power, "_STRIP_PX", 1)
            patch.setattr(low_power, "_MAX_READ_PX", 2**17)
            slide.largest_px = 0
            pieces = low_power.read_overview(slide, geometry, grid).rgb
        assert slide.largest_px <= 2**17
        assert np.abs(pieces.astype(int) - whole).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(300_000, 30), (30, 300_000), (30_001, 333)])
def test_a_thumbnail_is_drawn_in_pieces(facts, width, height, monkeypatch):
    slide = Drawn(facts, width, height)
    monkeypatch.setattr("cmamil_sdk.slides.thumbnail._MAX_READ_PX", 2**18)
    pieces = bounds_thumbnail(slide, 500)
    assert slide.largest_px <= 2**21
    assert max(pieces.shape[:2]) <= 500
    monkeypatch.setattr("cmamil_sdk.slides.thumbnail._MAX_READ_PX", 2**40)
    monkeypatch.setattr("cmamil_sdk.slides.thumbnail._STRIP_PX", 2**40)
    whole = bounds_thumbnail(slide, 500)
    assert np.abs(pieces.astype(int) - whole).max() <= 1
