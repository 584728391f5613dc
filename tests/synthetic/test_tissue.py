"""What is drawn on a slide: the planned cells, where their class says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.synthetic import CLASSES, SyntheticSlide, draw_slide, plan_cohort, render_slide
from cmamil_sdk.synthetic.layout import ANGLES, draw_sites
from cmamil_sdk.synthetic.sprites import NUCLEUS_KINDS, sprite_bank, stamp
from cmamil_sdk.synthetic.stains import colour_table, draw_stain, stain_pixels
from cmamil_sdk.synthetic.textures import texture_bank

PLAN = plan_cohort()


def first(label: str) -> SyntheticSlide:
    return next(slide for slide in PLAN if slide.label == label)


@pytest.mark.parametrize("cells", [1, 20, *range(75, 141)])
def test_every_planned_count_has_room_in_both_halves_of_a_site(cells: int) -> None:
    sites = draw_sites(np.random.default_rng(cells), cells)
    for side in ("in_gland", "in_nest"):
        assert sum(len(getattr(site, side).abnormal) for site in sites) == cells
    for site in sites:
        assert len(site.in_gland.around) == len(site.in_nest.around)
        assert len(site.in_gland.plain) == len(site.in_nest.plain) > 0
        assert np.mean(site.lumen**2) == pytest.approx(np.mean(site.nest**2))
        for outline, filling in ((site.lumen, site.in_gland), (site.nest, site.in_nest)):
            for points in (filling.abnormal, filling.around, filling.plain):
                angle = np.arctan2(points[:, 1], points[:, 0])
                edge = np.interp(angle, ANGLES, outline, period=2 * np.pi)
                assert (np.hypot(points[:, 0], points[:, 1]) < edge).all()


@pytest.mark.parametrize("label", CLASSES)
def test_the_drawn_cells_are_the_planned_ones_and_lie_where_the_class_says(label: str) -> None:
    slide = first(label)
    drawing = draw_slide(slide)
    assert len(drawing.abnormal_xy) == slide.abnormal_cells
    assert drawing.haematoxylin.shape == (slide.height_px, slide.width_px)
    if label == "benign":
        return
    x, y = np.round(drawing.abnormal_xy).astype(int).T
    around = [
        drawing.haematoxylin[y + down, x + right] for down in (-3, 0, 3) for right in (-3, 0, 3)
    ]
    middle = np.mean(around, axis=0)
    assert middle.min() > 60 and middle.mean() > 95
    centres, radii = drawing.glands[:, :2], drawing.glands[:, 2]
    gap = np.hypot(*(drawing.abnormal_xy[:, None] - centres).transpose(2, 0, 1))
    inside = (gap < radii).any(axis=1)
    assert inside.all() if label == "in_situ" else not inside.any()


def test_planned_cells_are_drawn_on_every_malignant_slide() -> None:
    for slide in [slide for slide in PLAN if slide.abnormal_cells][:6]:
        assert len(draw_slide(slide).abnormal_xy) == slide.abnormal_cells


def test_classes_share_glands_and_outline_but_for_the_abnormal_cells() -> None:
    in_situ = draw_slide(first("in_situ"))
    invasive = draw_slide(replace(first("in_situ"), label="invasive"))
    assert np.array_equal(in_situ.glands, invasive.glands)
    assert np.array_equal(in_situ.eosin, invasive.eosin)
    assert in_situ.haematoxylin.mean() == pytest.approx(invasive.haematoxylin.mean(), rel=0.01)
    differing = (in_situ.haematoxylin != invasive.haematoxylin).mean()
    assert 0.005 < differing < 0.15


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"label": "unknown"}, "labels are benign"),
        ({"split_hint": "test"}, "splits development"),
        ({"abnormal_cells": 0}, "at least one"),
        ({"label": "benign"}, "benign slides have none"),
        ({"width_px": 400, "height_px": 400}, "larger slide"),
    ],
)
def test_impossible_slides_are_refused(change: dict, word: str) -> None:
    with pytest.raises(FieldInvalid, match=word):
        draw_slide(replace(first("invasive"), **change))


def test_held_out_slides_use_other_sprites_and_textures() -> None:
    slide = first("benign")
    development = render_slide(replace(slide, split_hint="development"))
    held_out = render_slide(replace(slide, split_hint="held_out"))
    assert np.mean(development != held_out) > 0.3
    assert not any(
        np.array_equal(a, b) for a in sprite_bank(0).abnormal[:40] for b in sprite_bank(1).abnormal
    )


def test_sprites_follow_the_law_of_their_kind() -> None:
    bank = sprite_bank(0)
    area_px = {
        name: np.mean([(sprite > 40).sum() for sprite in getattr(bank, name)])
        for name in NUCLEUS_KINDS
    }
    assert area_px["abnormal"] > 2.5 * area_px["normal"] > area_px["stromal"]
    dark = {
        name: np.mean([np.median(sprite[sprite > 40]) for sprite in getattr(bank, name)])
        for name in NUCLEUS_KINDS
    }
    assert min(dark["lymphocyte"], dark["abnormal"]) > 1.25 * dark["normal"]


def test_stamping_keeps_the_darker_and_is_cut_at_the_edges() -> None:
    sprite = np.full((5, 7), 50, np.uint8)
    canvas = np.full((20, 30), 10, np.uint8)
    canvas[10, 15] = 90
    stamp(canvas, sprite, 15, 10)
    assert canvas[8:13, 12:19].min() == 50 and canvas[10, 15] == 90
    assert (canvas == 10).sum() == 20 * 30 - 35
    for x, y, covered in ((0, 0, 3 * 4), (29, 19, 3 * 4), (-20, 5, 0), (5, 60, 0)):
        blank = np.zeros((20, 30), np.uint8)
        stamp(blank, sprite, x, y)
        assert (blank == 50).sum() == covered


def test_stains_follow_beer_lambert() -> None:
    stain = draw_stain(np.random.default_rng(0))
    h = np.array([[0, 100, 30]], np.uint8)
    e = np.array([[0, 0, 60]], np.uint8)
    expected = stain.white * np.exp(
        -(h[..., None] / 100 * stain.haematoxylin + e[..., None] / 100 * stain.eosin)
    )
    pixels = stain_pixels(h, e, stain)
    assert pixels.shape == (1, 3, 3) and colour_table(stain).shape == (65536,)
    assert np.abs(pixels - expected).max() <= 0.5


def test_secretion_has_exactly_the_pixel_values_of_stroma() -> None:
    bank = texture_bank(0)
    assert np.array_equal(np.sort(bank.stroma, axis=None), np.sort(bank.secretion, axis=None))
    assert not np.array_equal(bank.stroma, bank.secretion)
