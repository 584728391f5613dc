"""The overview shows the slide, and the tiles where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from cmamil_sdk.explain.overview import write_overview
from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

BLACK, BLUE, GREEN = (20, 20, 20), (0, 84, 180), (0, 140, 70)
SHRINK = 1024 / 2000


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_without_a_plan_it_is_the_thumbnail(synthetic_slide: Path, tmp_path: Path) -> None:
    with open_slide(synthetic_slide) as reader:
        write_overview(tmp_path / "overview.png", reader, None)
        thumbnail = reader.thumbnail(1024)
    np.testing.assert_array_equal(pixels_of(tmp_path / "overview.png"), thumbnail)


def test_tiles_are_outlined_where_they_are_read(synthetic_slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "overview.png"
    with open_slide(synthetic_slide) as reader:
        plan = make_plan(reader, TilingRecipe(scales=parse_scales("5x,10x,20x")))
        write_overview(path, reader, plan)
    shown = pixels_of(path)
    assert shown.shape == (768, 1024, 3)

    def colours_near(x_level0: float, y_level0: float) -> set[tuple[int, ...]]:
        x, y = round(x_level0 * SHRINK), round(y_level0 * SHRINK)
        return {tuple(colour) for colour in shown[y, x - 2 : x + 3].tolist()}

    # At half the height of a row of tiles: an edge of 20x tiles only, of 10x too, of 5x too.
    for x, colour in ((672, GREEN), (448, BLUE), (896, BLACK)):
        assert colour in colours_near(x, 112)
    # Inside tiles, and outside of all of them, nothing is drawn.
    for x, y in ((560, 112), (784, 560), (1900, 1460)):
        assert not {BLACK, BLUE, GREEN} & colours_near(x, y)
