"""Otsu's threshold and the mask of tissue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.slides import SlideReader, open_slide
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.low_power import cells_per_tile
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.tiling.tissue import _saturation, find_tissue, otsu_threshold


def between_class_variance(values: np.ndarray, threshold: int) -> float:
    low, high = values[values <= threshold].astype(float), values[values > threshold].astype(float)
    if not low.size or not high.size:
        return 0.0
    return low.size * high.size * (low.mean() - high.mean()) ** 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=60))
def test_otsu_finds_the_best_threshold(numbers):
    values = np.array(numbers, np.uint8)
    best = max(between_class_variance(values, t) for t in range(256))
    found = between_class_variance(values, otsu_threshold(values))
    assert np.isclose(found, best, rtol=1e-9, atol=1e-6)


def test_otsu_parts_two_clear_classes():
    values = np.array([10] * 90 + [12] * 10 + [200] * 20, np.uint8)
    assert 12 <= otsu_threshold(values) < 200


def test_saturation_is_that_of_hsv():
    rgb = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [200, 100, 150]]], np.uint8)
    assert _saturation(rgb).tolist() == [[0, 0, 255, 128]]


def test_the_mask_is_exact_on_a_known_slide(synthetic_slide):
    recipe = TilingRecipe(scales=parse_scales("5x,10x,20x"))
    assert cells_per_tile(recipe) == 14  # 224 px of 0.5 um, in cells of 8 um
    with open_slide(synthetic_slide) as reader:
        mask = find_tissue(reader, recipe, read_geometry(reader.facts, recipe)).tissue
    assert mask.shape == (2 * 4 * 14, 3 * 4 * 14)
    # Tissue covers x 224..1568 and y 0..1344 in cells of 16 px; JPEG blurs the last cell's border.
    assert mask[0:83, 15:97].all()
    assert not mask[86:].any()
    assert not mask[:, :12].any()
    assert not mask[:, 100:].any()


def test_method_none_takes_what_lies_inside(synthetic_slide):
    recipe = TilingRecipe(scales=parse_scales("20x"), tissue=TissueRecipe(method="none"))
    with open_slide(synthetic_slide) as reader:
        mask = find_tissue(reader, recipe, read_geometry(reader.facts, recipe)).tissue
    assert mask.shape == (7 * 14, 9 * 14)
    assert mask[:94, :125].all()  # 1500 / 16 = 93.75, 2000 / 16 = 125
    assert not mask[94:].any()
    assert not mask[:, 125:].any()


def slide_of(path: Path, rgb: tuple[int, int, int]) -> Path:
    rng = np.random.default_rng(0)
    pixels = np.array(rgb) + rng.normal(0, 2, (500, 700, 1))
    write_svs(np.clip(pixels, 0, 255).astype(np.uint8), path, mpp=0.5, objective_power=20.0)
    return path


def test_tissue_alone_is_all_tissue_and_glass_alone_is_none(tmp_path):
    recipe = TilingRecipe(scales=parse_scales("20x"))
    for rgb, share in (((205, 130, 175), 1.0), ((243, 242, 244), 0.0)):
        with open_slide(slide_of(tmp_path / f"{share}.svs", rgb)) as reader:
            geometry = read_geometry(reader.facts, recipe)
            mask = find_tissue(reader, recipe, geometry).tissue
        inside = mask[:31, :43]
        assert inside.mean() == share


def test_strips_do_not_change_the_mask(synthetic_slide, monkeypatch):
    recipe = TilingRecipe(scales=parse_scales("20x"))
    with open_slide(synthetic_slide) as reader:
        geometry = read_geometry(reader.facts, recipe)
        whole = find_tissue(reader, recipe, geometry).tissue
        monkeypatch.setattr("cmamil_sdk.tiling.low_power._STRIP_PX", 500)
        assert (find_tissue(reader, recipe, geometry).tissue == whole).all()


class _HoleyReader:
    """Refuses every region that touches the level-0 point ``hole``."""

    def __init__(self, reader: SlideReader, hole: tuple[int, int]) -> None:
        self.facts = replace(reader.facts, levels=reader.facts.levels[:1])
        self._reader, self._hole = reader, hole

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if x <= self._hole[0] < x + width and y <= self._hole[1] < y + height:
            raise SlideCorrupt("hole")
        return self._reader.read_region(level, x, y, width, height)


def test_what_cannot_be_decoded_is_planned_so_that_its_loss_is_counted(synthetic_slide):
    hole = (1800, 1000)  # on glass: as background it would vanish unseen
    with open_slide(synthetic_slide) as reader:
        whole = make_plan(reader, TilingRecipe(scales=parse_scales("5x,10x,20x")))
        holey = make_plan(
            _HoleyReader(reader, hole), TilingRecipe(scales=parse_scales("5x,10x,20x"))
        )
    extra = {tuple(i) for i in holey.scales[-1].index} - {tuple(i) for i in whole.scales[-1].index}
    assert extra == {(1800 // 224, 1000 // 224)}


def test_an_overview_with_too_many_holes_fails_the_slide(synthetic_slide):
    class Blind(_HoleyReader):
        def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
            raise SlideCorrupt("all is lost")

    with open_slide(synthetic_slide) as reader, pytest.raises(SlideCorrupt):
        make_plan(Blind(reader, (0, 0)), TilingRecipe(scales=parse_scales("5x,10x,20x")))


def test_a_dark_frame_is_no_tissue(tmp_path):
    pixels = np.full((1120, 1120, 3), 244, dtype=np.uint8)
    pixels[448:672, 448:672] = (205, 130, 175)
    pixels[:, :224] = (20, 14, 16)  # saturated, by HSV's measure, and black
    path = tmp_path / "framed.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    with open_slide(path) as reader:
        plan = make_plan(reader, TilingRecipe(scales=parse_scales("20x")))
    assert plan.scales[0].index.tolist() == [[2, 2]]


@pytest.mark.parametrize("padding", [(4, 0, 4), (12, 6, 12), (0, 0, 0)])
def test_what_is_dark_has_no_say_in_what_is_pale(tmp_path, padding):
    """The hue of black padding is all saturation; judged along, it hid tissue of saturation 33."""
    pixels = np.full((672, 1344, 3), 244, dtype=np.uint8)
    pixels[224:448, 224:448] = (235, 205, 222)
    pixels[:, 672:] = padding
    path = tmp_path / "padded.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    with open_slide(path) as reader:
        plan = make_plan(reader, TilingRecipe(scales=parse_scales("20x")))
    assert plan.scales[0].index.tolist() == [[1, 1]]
