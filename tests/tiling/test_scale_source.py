"""Where the pixels of coarser scales come from: the finest scale, or a stored level of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import Scale, TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.units import MicronsPerPixel

ALL = TissueRecipe(method="none", min_share=0.0)


class Ramp:
    """A slide whose red and green grow with level-0 x and y; every level shows the same places.

    Values stay below 255, which is what lies outside.
    """

    def __init__(
        self,
        downsamples: Sequence[float],
        *,
        size: tuple[int, int] = (2000, 1600),
        bounds: tuple[int, int, int, int] | None = None,
        mpp: float = 0.5,
    ) -> None:
        width, height = size
        self.facts = SlideFacts(
            path="/slides/ramp.svs",
            slide_id="ramp",
            width=width,
            height=height,
            bounds=bounds or (0, 0, width, height),
            levels=tuple(Level(round(width / d), round(height / d), d) for d in downsamples),
            mpp=MicronsPerPixel(mpp),
            mpp_source="metadata",
            mpp_problem=None,
            objective_power=None,
            vendor="none",
            compression=None,
            reader="openslide",
            reader_reason="test",
        )
        self.slope = 250 / max(size)  # grey levels per level-0 pixel
        self.asked: list[tuple[int, int, int, int, int]] = []

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        self.asked.append((level, x, y, width, height))
        stored = self.facts.levels[level]
        columns, rows = np.arange(x, x + width), np.arange(y, y + height)
        out = np.full((height, width, 3), 255, np.uint8)
        inside = ((rows >= 0) & (rows < stored.height))[:, None] & (
            (columns >= 0) & (columns < stored.width)
        )
        red = (columns + 0.5) * stored.downsample * self.slope
        green = (rows + 0.5) * stored.downsample * self.slope
        out[..., 0] = np.where(inside, np.clip(red, 0, 254)[None, :], 255)
        out[..., 1] = np.where(inside, np.clip(green, 0, 254)[:, None], 255)
        out[..., 2] = np.where(inside, 50 * level, 255)
        return out


def tiles_of(
    reader: Ramp, recipe: TilingRecipe
) -> dict[str, dict[tuple[int, int], tuple[np.ndarray, tuple[int, int]]]]:
    """Per scale and place in the grid: pixels, and the level-0 corner."""
    plan = make_plan(reader, recipe)
    found: dict = {name: {} for name in recipe.names}
    for batch in plan.batches():
        tiles = read_tiles(reader, batch)
        assert tiles.ok.all()
        for tile in range(len(batch)):
            scale, row = plan.scales[batch.tile_scale[tile]], batch.plan_row[tile]
            place = tuple(scale.index[row].tolist())
            found[scale.name][place] = tiles.pixels[tile], tuple(scale.coords[row].tolist())
    return found


def recipe_of(scales: str, source: str, tile_px: int = 32, **fields: object) -> TilingRecipe:
    return TilingRecipe(
        scales=parse_scales(scales), tile_px=tile_px, scale_source=source, tissue=ALL, **fields
    )


@pytest.mark.parametrize(
    ("downsamples", "mpp", "levels"),
    [
        ((1.0,), 0.5, (0, 0, 0)),
        ((1.0, 2.0, 4.0), 0.5, (2, 1, 0)),
        ((1.0, 4.0, 16.0), 0.25, (1, 1, 0)),
        ((1.0, 2.0003, 4.002), 0.5, (2, 1, 0)),
        ((1.0, 2.0003, 4.002), 0.2527, (2, 2, 1)),
        ((1.0, 1.9, 3.9), 0.5, (2, 1, 0)),
        ((1.0, 2.1, 4.2), 0.5, (1, 0, 0)),
        ((1.0, 16.0), 0.25, (0, 0, 0)),
    ],
)
def test_each_scale_has_the_coarsest_level_that_is_no_coarser(downsamples, mpp, levels):
    facts = Ramp(downsamples, mpp=mpp).facts
    stored = read_geometry(facts, recipe_of("5x,10x,20x", "stored"))
    assert tuple(stored.levels().values()) == levels
    finest = read_geometry(facts, recipe_of("5x,10x,20x", "finest"))
    assert set(finest.levels().values()) == {levels[-1]}
    assert finest.own_levels == (None, None, None)


@st.composite
def pyramids(draw: st.DrawFn) -> Ramp:
    """Slides of several levels, whole and not, with and without bounds."""
    factors = draw(st.lists(st.sampled_from([2.0, 2.0003, 2.05, 4.0, 4.002, 3.9]), max_size=2))
    downsamples = [1.0]
    for factor in factors:
        downsamples.append(downsamples[-1] * factor)
    width, height = draw(st.integers(260, 500)), draw(st.integers(260, 500))
    bounds = None
    if draw(st.booleans()):
        x, y = draw(st.integers(0, width // 3)), draw(st.integers(0, height // 3))
        bounds = (x, y, draw(st.integers(140, width - x)), draw(st.integers(140, height - y)))
    mpp = draw(st.sampled_from([0.5, 0.499, 0.25, 0.2527, 0.46]))
    return Ramp(downsamples, size=(width, height), bounds=bounds, mpp=mpp)


SCALES = st.sampled_from(["5x,10x,20x", "5x,20x", "2.5x,10x,20x", "10x"])


@given(pyramids(), SCALES)
@settings(max_examples=60, deadline=None)
def test_stored_pixels_lie_where_the_grid_has_them(reader, scales):
    """Every pixel of every tile, of either source, shows its place to a pixel of the level read."""
    recipe = recipe_of(scales, "stored")
    geometry = read_geometry(reader.facts, recipe)
    places = {}
    for source in ("finest", "stored"):
        found = tiles_of(reader, recipe.model_copy(update={"scale_source": source}))
        places[source] = {n: {at: c for at, (_, c) in t.items()} for n, t in found.items()}
    assert places["finest"] == places["stored"]
    x, y, width, height = reader.facts.bounds
    for number, name in enumerate(recipe.names):
        level = reader.facts.levels[geometry.levels()[name]]
        size = geometry.scale_size_level0(number)
        step = size / recipe.tile_px
        # the corner and the start of reading are each rounded to whole pixels; a level that misses a
        # whole ratio by the tolerance is off by 1 % of a tile at its edges; a grey level is a few px
        off = 1 + level.downsample + 0.01 * size + 1 / reader.slope
        for (column, row), (pixels, corner) in found[name].items():
            for axis, (start, extent, at) in enumerate(((x, width, column), (y, height, row))):
                assert abs(corner[axis] - (start + at * size)) <= 0.5
                place = corner[axis] + (np.arange(recipe.tile_px) + 0.5) * step
                seen = place < start + extent - 2 * off  # the others hold some white
                line = pixels[0, :, 0] if axis == 0 else pixels[:, 0, 1]
                assert np.abs(line[seen] / reader.slope - place[seen]).max(initial=0) <= off


@given(pyramids(), st.sampled_from([("5x,10x,20x", ("5x,20x", "10x,20x")), ("2.5x,20x", ("20x",))]))
@settings(max_examples=30, deadline=None)
def test_a_scale_looks_the_same_whatever_other_scales_are_read(reader, chosen):
    """So features of some scales of a file fit a recipe of these scales alone."""
    scales, fewer = chosen
    whole = tiles_of(reader, recipe_of(scales, "stored"))
    for part in fewer:
        for name, tiles in tiles_of(reader, recipe_of(part, "stored")).items():
            for place in tiles.keys() & whole[name].keys():
                assert (tiles[place][0] == whole[name][place][0]).all()


@pytest.mark.parametrize("mpp", [0.5, 0.25, 0.46])
@pytest.mark.parametrize("bounds", [None, (37, 61, 700, 500)])
def test_one_level_gives_equal_pixels_by_either_source(mpp, bounds):
    reader = Ramp([1.0], size=(1000, 800), bounds=bounds, mpp=mpp)
    finest = tiles_of(reader, recipe_of("5x,10x,20x", "finest"))
    stored = tiles_of(reader, recipe_of("5x,10x,20x", "stored"))
    for name, tiles in finest.items():
        assert tiles
        for place, (pixels, _) in tiles.items():
            assert (pixels == stored[name][place][0]).all()


def test_whole_levels_are_cut_and_not_resampled():
    """At 2.0003 and 4.002 a tile is read as 32 x 32 pixels of the level, centred on its place."""
    reader = Ramp([1.0, 2.0003, 4.002], bounds=(301, 203, 1200, 1000))
    tiles_of(reader, recipe_of("5x,10x,20x", "stored"))
    of_level = {level: [] for level in (0, 1, 2)}
    for level, *box in reader.asked:
        of_level[level].append(box)
    assert {box[2:] == [128, 128] for box in of_level[0] if box[2] == box[3]} == {True}
    for level, downsample in ((1, 2.0003), (2, 4.002)):
        size = 32 * {1: 2, 2: 4}[level]  # level-0 pixels of a tile in the grid
        whole = [box for box in of_level[level] if box[2:] == [32, 32]]
        assert whole
        for x, y, _, _ in whole:
            for start, origin in ((x, 301), (y, 203)):
                middle = (start + 16) * downsample - origin - size / 2
                off = middle / size - round(middle / size)
                assert abs(off * size) <= downsample / 2 + 1e-6


def test_what_lies_outside_the_bounds_is_white_at_every_level():
    reader = Ramp([1.0, 2.0, 4.0], size=(2000, 1600), bounds=(100, 40, 420, 300))
    found = tiles_of(reader, recipe_of("5x,10x,20x", "stored", tile_px=64))
    for name, size in (("5x", 256), ("10x", 128), ("20x", 64)):
        for (column, row), (pixels, _) in found[name].items():
            right = math.ceil((420 - column * size) / (size / 64))
            lower = math.ceil((300 - row * size) / (size / 64))
            assert (pixels[:, max(0, right) :] == 255).all()
            assert (pixels[max(0, lower) :] == 255).all()
            assert (pixels[: max(0, lower - 1), : max(0, right - 1), 2] < 255).all()


@pytest.mark.parametrize("source", ["finest", "stored"])
def test_the_source_is_part_of_the_recipe(source):
    recipe = recipe_of("5x,20x", source)
    document = json.loads(recipe.model_dump_json())
    assert document["scale_source"] == source
    assert TilingRecipe.model_validate(document) == recipe
    del document["scale_source"]
    assert TilingRecipe.model_validate(document).scale_source == "finest"


def test_scales_of_other_names_and_ratios():
    recipe = TilingRecipe(
        scales=(Scale(name="a", mpp=1.5), Scale(name="b", mpp=0.5)),
        tile_px=32,
        scale_source="stored",
    )
    geometry = read_geometry(Ramp([1.0, 3.0]).facts, recipe)
    assert geometry.levels() == {"a": 1, "b": 0}
    own = geometry.own_levels[0]
    assert own is not None
    assert own.tile_px == 32.0
