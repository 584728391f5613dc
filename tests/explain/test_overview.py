"""The overview shows the slide, and tissue, tiles and ink where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.errors import SlideCorrupt
from cmamil_sdk.explain.holes import LOST
from cmamil_sdk.explain.overview import MAX_PX, PEN, SCALES, TISSUE, write_overview
from cmamil_sdk.slides import open_slide
from cmamil_sdk.synthetic import write_svs
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.plan import plan_tiles
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.tiling.tissue import find_tissue

BLACK, BLUE, GREEN, *_ = SCALES
SHRINK = MAX_PX / 2000
GLASS = 244
PALE = round(GLASS + 0.55 * (255 - GLASS))


def overview(slide: Path, path: Path, recipe: TilingRecipe | None) -> np.ndarray:
    """The picture ``[h, w, 3]``; without a recipe, that of a slide that cannot be tiled."""
    with open_slide(slide) as reader:
        if recipe is None:
            write_overview(path, reader, None, None)
        else:
            geometry = read_geometry(reader.facts, recipe)
            found = find_tissue(reader, recipe, geometry)
            write_overview(path, reader, plan_tiles(reader.facts, recipe, geometry, found), found)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def recipe(scales: str, **tissue: object) -> TilingRecipe:
    return TilingRecipe(scales=parse_scales(scales), tissue=TissueRecipe(**tissue))


def test_without_a_plan_it_is_the_slide_and_a_scale_bar(
    synthetic_slide: Path, tmp_path: Path
) -> None:
    shown = overview(synthetic_slide, tmp_path / "overview.png", None)
    with open_slide(synthetic_slide) as reader:
        thumbnail = reader.thumbnail(MAX_PX)
    np.testing.assert_array_equal(shown[: len(thumbnail)], thumbnail)
    # The longest round length within a fifth of 1 mm is 0.2 mm: 400 of 2000 slide pixels.
    strip = shown[len(thumbnail) :]
    before_its_text = strip[:, : round(12 + 400 * SHRINK + 7)]
    longest = max((row == 0).all(axis=-1).sum() for row in before_its_text)
    assert longest == pytest.approx(400 * SHRINK, abs=2)


def test_tiles_are_outlined_where_they_are_read(synthetic_slide: Path, tmp_path: Path) -> None:
    shown = overview(synthetic_slide, tmp_path / "new" / "overview.png", recipe("5x,10x,20x"))
    assert shown.shape[1] == MAX_PX

    def colours_near(x_level0: float, y_level0: float) -> set[tuple[int, ...]]:
        x, y = round(x_level0 * SHRINK), round(y_level0 * SHRINK)
        return {tuple(colour) for colour in shown[y, x - 3 : x + 4].tolist()}

    # At half the height of a row of tiles: an edge of 20x tiles only, of 10x too, of 5x too.
    for x, colour in ((672, GREEN), (448, BLUE), (896, BLACK)):
        assert colour in colours_near(x, 112)
    # Inside tiles, and outside of all of them, nothing is drawn.
    for x, y in ((560, 112), (784, 560), (1900, 1460)):
        assert not {*SCALES, TISSUE} & colours_near(x, y)
    assert TISSUE in colours_near(224, 1000), "tissue begins there"


def test_what_is_not_read_is_pale(synthetic_slide: Path, tmp_path: Path) -> None:
    shown = overview(synthetic_slide, tmp_path / "overview.png", recipe("20x"))
    assert shown[round(1460 * SHRINK), round(1900 * SHRINK)].tolist() == [PALE] * 3
    everywhere = overview(synthetic_slide, tmp_path / "all.png", recipe("20x", method="none"))
    assert everywhere[round(1460 * SHRINK), round(1860 * SHRINK)].tolist() == [GLASS] * 3


def test_every_scale_has_a_colour_of_its_own(synthetic_slide: Path, tmp_path: Path) -> None:
    """Five scales of ratio 2 are the most that nest."""
    shown = overview(synthetic_slide, tmp_path / "o.png", recipe("1.25x,2.5x,5x,10x,20x"))
    colours = {tuple(colour) for colour in shown.reshape(-1, 3).tolist()}
    assert len(set(SCALES)) == 5
    assert colours >= set(SCALES)


def test_what_cannot_be_decoded_is_shown_as_such(
    synthetic_slide: Path, tmp_path: Path, with_zeroed: Callable[..., Path]
) -> None:
    """Stored tiles are 240 px; the hole lies at (2, 3), the picture is read from level 0."""
    damaged = with_zeroed(synthetic_slide, (2, 3))
    shown = overview(damaged, tmp_path / "o.png", recipe("20x"))
    hole = shown[round(780 * SHRINK) : round(900 * SHRINK), round(520 * SHRINK) : 560]
    assert (hole == LOST).all(axis=-1).mean() > 0.9
    assert (shown[: round(1500 * SHRINK)] == LOST).all(axis=-1).mean() < 0.07
    whole = overview(synthetic_slide, tmp_path / "o.png", recipe("20x"))
    assert not (whole == LOST).all(axis=-1).any(), "neither in the picture nor in its legend"


def test_a_slide_that_is_lost_has_no_picture(
    synthetic_slide: Path, tmp_path: Path, with_zeroed: Callable[..., Path]
) -> None:
    damaged = with_zeroed(synthetic_slide, *((x, y) for x in range(9) for y in range(3)))
    with pytest.raises(SlideCorrupt, match="more than 5% of level 0"):
        overview(damaged, tmp_path / "o.png", None)
    assert not (tmp_path / "o.png").exists()


def test_excluded_ink_is_hatched(tmp_path: Path) -> None:
    pixels = np.full((1344, 1344, 3), GLASS, dtype=np.uint8)
    pixels[448:1120, 448:1120] = (205, 130, 175)
    pixels[96:336, 200:1200] = (30, 60, 170)
    write_svs(pixels, tmp_path / "inked.svs", mpp=0.5, objective_power=20.0)

    def ink_drawn(pens: str) -> int:
        shown = overview(tmp_path / "inked.svs", tmp_path / "o.png", recipe("20x", pens=pens))
        found = (shown[: len(pixels)] == PEN).all(axis=-1)
        assert not found[:90].any()
        assert not found[345:].any()
        return int(found.sum())

    assert ink_drawn("keep") == 0
    assert ink_drawn("exclude") == pytest.approx(240 * 1000 * 3 / 8, rel=0.1)


def test_tiles_too_small_to_draw_have_no_lines(tmp_path: Path) -> None:
    pixels = np.full((600, 8000, 3), (205, 130, 175), dtype=np.uint8)
    write_svs(pixels, tmp_path / "wide.svs", mpp=0.5, objective_power=20.0)
    small = TilingRecipe(
        scales=parse_scales("5x,20x"), tile_px=28, tissue=TissueRecipe(method="none")
    )
    shown = overview(tmp_path / "wide.svs", tmp_path / "o.png", small)
    colours = {tuple(colour) for colour in shown[:120].reshape(-1, 3).tolist()}
    assert BLACK in colours
    assert BLUE not in colours


@pytest.mark.parametrize("scales", ["5x,10x,20x", "20x"])
def test_a_tiny_slide_without_tissue_has_a_readable_legend(tmp_path: Path, scales: str) -> None:
    pixels = np.full((16, 16, 3), GLASS, dtype=np.uint8)
    write_svs(pixels, tmp_path / "tiny.svs", mpp=0.5, objective_power=20.0)
    shown = overview(tmp_path / "tiny.svs", tmp_path / "o.png", recipe(scales))
    assert shown.shape[1] >= 480
    assert (shown[16:] == TISSUE).all(axis=-1).any(), "the legend names the tissue's outline"
