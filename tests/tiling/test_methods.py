"""Tissue by edge density and without a method; ink, holes and specks; on pixels known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from cmamil_sdk.errors import NoTissue, SlideCorrupt
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.edge_density import edge_density
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.tiling.tissue import find_tissue
from cmamil_sdk.units import MicronsPerPixel

TILE_PX = 64  # 32 um at 20x: 4 cells of 8 um, 16 px each
EDGES = {"method": "edge-density", "edge_threshold": 20.0}  # so small a tile of glass scores 15.01
GLASS, PINK, BLUE_INK = (244, 244, 244), (205, 130, 175), (30, 60, 170)


class ArrayReader:
    """A slide of one level at 0.5 um/px that is an array; decoding fails in columns ``from lost_x``."""

    def __init__(self, pixels: np.ndarray, lost_x: int | None = None) -> None:
        height, width = pixels.shape[:2]
        self._pixels, self._lost_x = pixels, lost_x
        self.facts = SlideFacts(
            path="/slides/x.svs",
            slide_id="x",
            width=width,
            height=height,
            bounds=(0, 0, width, height),
            levels=(Level(width, height, 1.0),),
            mpp=MicronsPerPixel(0.5),
            mpp_source="metadata",
            mpp_problem=None,
            objective_power=20.0,
            vendor="none",
            compression=None,
            reader="array",
            reader_reason="test",
        )

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        if self._lost_x is not None and x + width > self._lost_x:
            raise SlideCorrupt("lost")
        out = np.full((height, width, 3), 255, np.uint8)
        inside = self._pixels[y : y + height, x : x + width]
        out[: inside.shape[0], : inside.shape[1]] = inside
        return out


def recipe(scales: str = "20x", **tissue: object) -> TilingRecipe:
    return TilingRecipe(scales=parse_scales(scales), tile_px=TILE_PX, tissue=TissueRecipe(**tissue))


def slide(rows: int, columns: int) -> np.ndarray:
    """Glass, ``rows`` x ``columns`` tiles."""
    return np.full((rows * TILE_PX, columns * TILE_PX, 3), GLASS, dtype=np.uint8)


def cells(pixels: np.ndarray, **tissue: object) -> np.ndarray:
    reader, settings = ArrayReader(pixels), recipe(**tissue)
    return find_tissue(reader, settings, read_geometry(reader.facts, settings)).tissue


def tiles(pixels: np.ndarray, settings: TilingRecipe, lost_x: int | None = None) -> list[list[int]]:
    return make_plan(ArrayReader(pixels, lost_x), settings).scales[-1].index.tolist()


def noisy(shape: tuple[int, ...], sd: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sd, shape)
    return np.clip(200 + noise, 0, 255).round().astype(np.uint8)


def test_edge_density_keeps_what_scores_above_the_threshold():
    pixels = slide(2, 4)
    pixels[:TILE_PX, TILE_PX : 2 * TILE_PX] = noisy((TILE_PX, TILE_PX, 3), 8)
    pixels[TILE_PX:, 3 * TILE_PX :] = noisy((TILE_PX, TILE_PX, 3), 5)
    scores = {
        (x, y): edge_density(
            pixels[y * TILE_PX : (y + 1) * TILE_PX, x * TILE_PX : (x + 1) * TILE_PX],
            tile_size_px=TILE_PX,
        )
        for y in range(2)
        for x in range(4)
    }
    rich = sorted(scores, key=scores.__getitem__)[-2:]
    assert rich == [(3, 1), (1, 0)]
    # Glass has its border only: four edges of 63 pixels, at their own grey value.
    assert scores[0, 0] == pytest.approx(244 * 4 * 63 / TILE_PX**2)
    assert tiles(pixels, recipe(method="edge-density", edge_threshold=scores[0, 0])) == [
        [1, 0],
        [3, 1],
    ]
    between = recipe(method="edge-density", edge_threshold=scores[3, 1])
    assert tiles(pixels, between) == [[1, 0]], "strictly above"


def test_edge_density_at_the_edge_of_the_slide():
    # The second column of tiles is 40 of 64 px wide: 0.625 of a tile.
    pixels = noisy((TILE_PX, TILE_PX + 40, 3), 8)
    whole, part = pixels[:, :TILE_PX], pixels[:, TILE_PX:]
    as_published = edge_density(part, tile_size_px=TILE_PX)
    assert as_published < 35 < edge_density(part, tile_size_px=None)
    assert edge_density(whole, tile_size_px=TILE_PX) > 35
    settings = {"method": "edge-density", "edge_threshold": 35.0}
    assert tiles(pixels, recipe(**settings)) == [[0, 0]]
    assert tiles(pixels, recipe(**settings, edge_area="inside")) == [[0, 0], [1, 0]]


def test_edge_density_decides_at_the_finest_scale_and_ancestors_follow():
    pixels = slide(4, 4)
    pixels[3 * TILE_PX :, :TILE_PX] = noisy((TILE_PX, TILE_PX, 3), 20)
    plan = make_plan(ArrayReader(pixels), recipe("5x,10x,20x", **EDGES))
    assert plan.counts() == {"5x": 1, "10x": 1, "20x": 1}
    assert plan.scales[2].index.tolist() == [[0, 3]]
    assert [scale.tissue.tolist() for scale in plan.scales] == [[1 / 16], [1 / 4], [1.0]]


def test_edge_density_plans_what_cannot_be_decoded_and_fails_a_slide_that_lost_much():
    pixels, settings = slide(1, 40), recipe(**EDGES)
    pixels[:, :TILE_PX] = noisy((TILE_PX, TILE_PX, 3), 20)
    assert tiles(pixels, settings, lost_x=38 * TILE_PX) == [[0, 0], [38, 0], [39, 0]]
    with pytest.raises(SlideCorrupt, match="5%"):
        tiles(pixels, settings, lost_x=37 * TILE_PX)


def ring() -> np.ndarray:
    """8 x 8 cells of tissue from cell (4, 4) on with a hole of 2 x 3 cells, in 4 x 4 tiles."""
    pixels = slide(4, 4)
    pixels[4 * 16 : 12 * 16, 4 * 16 : 12 * 16] = PINK
    pixels[6 * 16 : 8 * 16, 7 * 16 : 10 * 16] = GLASS
    return pixels


def test_holes_are_filled_up_to_an_area():
    hole_um2 = 6 * 64
    assert cells(ring()).sum() == 64 - 6
    assert cells(ring(), fill_holes_um2=hole_um2 - 1).sum() == 64 - 6
    assert cells(ring(), fill_holes_um2=hole_um2).sum() == 64


def test_specks_are_dropped_below_an_area():
    pixels = ring()
    pixels[:16, :32] = PINK  # 2 cells of 64 um2
    assert cells(pixels).sum() == 60
    assert cells(pixels, drop_specks_um2=128).sum() == 60
    assert cells(pixels, drop_specks_um2=129).sum() == 58


def test_areas_do_not_depend_on_the_size_of_cells():
    for cell_um in (4.0, 8.0):
        share = cells(ring(), cell_um=cell_um, fill_holes_um2=384).mean()
        assert share == 64 / 256
        assert cells(ring(), cell_um=cell_um, drop_specks_um2=58 * 64 + 1).sum() == 0


def crossed() -> np.ndarray:
    """The ring with a stroke of blue ink, 2 cells wide, across glass and tissue."""
    pixels = ring()
    pixels[9 * 16 : 11 * 16, :] = BLUE_INK
    return pixels


@pytest.mark.parametrize("method", ["otsu", "none"])
def test_ink_is_excluded_if_the_recipe_says_so(method):
    kept = cells(crossed(), method=method)
    assert kept[9:11].all(), "ink is saturated, so it passes for tissue"
    excluded = cells(crossed(), method=method, pens="exclude", pen_min_um2=1000)
    assert not excluded[9:11].any()
    assert (np.delete(excluded, (9, 10), 0) == np.delete(kept, (9, 10), 0)).all()
    assert cells(crossed(), method=method, pens="exclude", pen_min_um2=1e6)[9:11].all()


def test_a_stroke_of_ink_is_no_hole():
    pixels = ring()
    pixels[9 * 16 : 11 * 16, 6 * 16 : 10 * 16] = BLUE_INK  # 8 cells inside the tissue
    settings = {"pens": "exclude", "pen_min_um2": 8 * 64, "fill_holes_um2": 10_000}
    assert cells(pixels, **settings).sum() == 64 - 8


def test_ink_is_told_from_tissue_by_edge_density_too():
    pixels = slide(1, 2)
    pixels[:, :TILE_PX] = noisy((TILE_PX, TILE_PX, 3), 20)
    pixels[:, TILE_PX:] = (34, 136, 118)
    pixels[::2, TILE_PX:] -= 20  # as rich in edges as tissue
    assert tiles(pixels, recipe(**EDGES)) == [[0, 0], [1, 0]]
    assert tiles(pixels, recipe(**EDGES, pens="exclude", pen_min_um2=0)) == [[0, 0]]


def test_an_empty_plan_is_given_to_those_who_ask_for_it():
    reader, settings = ArrayReader(slide(2, 2)), recipe("10x,20x")
    with pytest.raises(NoTissue):
        make_plan(reader, settings)
    plan = make_plan(reader, settings, allow_empty=True)
    assert plan.counts() == {"10x": 0, "20x": 0}
    assert plan.tissue_share == 0.0
    assert len(plan.batches()) == 0


def test_a_coarse_tile_alone_makes_no_plan():
    # One cell in each of the four 20x tiles: none reaches a share that their 10x tile reaches.
    pixels = slide(2, 2)
    for y, x in ((48, 48), (48, 64), (64, 48), (64, 64)):
        pixels[y : y + 16, x : x + 16] = PINK
    plan = make_plan(ArrayReader(pixels), recipe("10x,20x", min_share=0.0626), allow_empty=True)
    assert plan.total_tiles() == 0
    assert make_plan(ArrayReader(pixels), recipe("10x,20x", min_share=0.0625)).total_tiles() == 5
