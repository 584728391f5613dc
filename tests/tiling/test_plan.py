"""Plans: exact counts, nesting, coordinates, and which level serves which scale."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmamil_sdk.errors import MppUnknown, MppUnusable, NoTissue, TooManyTiles
from cmamil_sdk.slides import open_slide
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales
from cmamil_sdk.tiling.tissue import find_tissue
from cmamil_sdk.units import MicronsPerPixel

THREE = TilingRecipe(scales=parse_scales("5x,10x,20x"))


def facts(
    width: int = 4000,
    height: int = 3000,
    mpp: float | None = 0.5,
    downsamples: tuple[float, ...] = (1.0,),
    bounds: tuple[int, int, int, int] | None = None,
) -> SlideFacts:
    return SlideFacts(
        path="/slides/x.svs",
        slide_id="x",
        width=width,
        height=height,
        bounds=bounds or (0, 0, width, height),
        levels=tuple(Level(int(width / d), int(height / d), d) for d in downsamples),
        mpp=None if mpp is None else MicronsPerPixel(mpp),
        mpp_source="unknown" if mpp is None else "metadata",
        mpp_problem=None,
        objective_power=None,
        vendor="none",
        compression=None,
        reader="array",
        reader_reason="test",
    )


class BlockReader:
    """A one-level slide whose pixels are tissue where ``tissue(x, y)`` of a 40 px grid says so."""

    def __init__(self, about: SlideFacts, seed: int) -> None:
        self.facts = about
        rng = np.random.default_rng(seed)
        cells = rng.random((about.height // 40 + 1, about.width // 40 + 1)) < rng.random()
        cells[rng.integers(cells.shape[0]), :] = True
        colour = np.where(cells[..., None], (205, 130, 175), (244, 244, 244)).astype(np.uint8)
        self.pixels = colour.repeat(40, 0).repeat(40, 1)[: about.height, : about.width]

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        assert level == 0
        out = np.full((height, width, 3), 255, np.uint8)
        inside = self.pixels[max(0, y) : y + height, max(0, x) : x + width]
        at_y, at_x = max(0, -y), max(0, -x)
        out[at_y : at_y + inside.shape[0], at_x : at_x + inside.shape[1]] = inside
        return out


@pytest.fixture(scope="module")
def known_plan(synthetic_slide) -> TilePlan:
    with open_slide(synthetic_slide) as reader:
        return make_plan(reader, THREE)


def test_exact_counts_on_a_known_slide(known_plan):
    # Tissue is the 20x columns 1..6, rows 0..5. Below them lie the 10x columns 0..3 (0 and 3 by
    # half), rows 0..2, and the 5x columns 0 and 1 (three of four columns each), rows 0 and 1.
    assert known_plan.counts() == {"5x": 4, "10x": 12, "20x": 36}
    assert known_plan.total_tiles() == 52
    by_name = {scale.name: scale for scale in known_plan.scales}
    expected = [(x, y) for y in range(6) for x in range(1, 7)]
    assert [tuple(i) for i in by_name["20x"].index.tolist()] == expected
    assert (by_name["20x"].coords == by_name["20x"].index * 224).all()
    assert (by_name["5x"].coords == by_name["5x"].index * 896).all()
    np.testing.assert_allclose(by_name["5x"].tissue, [0.75, 0.75, 0.375, 0.375], atol=0.03)
    np.testing.assert_allclose(by_name["20x"].tissue, 1.0, atol=0.08)
    assert known_plan.tissue_share == pytest.approx(1344 * 1344 / (2000 * 1500), abs=0.02)


@pytest.mark.parametrize(
    ("scales", "counts"),
    [
        ("20x", {"20x": 36}),
        ("5x,20x", {"5x": 4, "20x": 36}),
        ("10x", {"10x": 12}),
        ("5x", {"5x": 4}),
    ],
)
def test_counts_do_not_depend_on_the_other_scales(synthetic_slide, scales, counts):
    with open_slide(synthetic_slide) as reader:
        assert make_plan(reader, TilingRecipe(scales=parse_scales(scales))).counts() == counts


def test_without_a_tissue_method_all_tiles_that_are_half_inside(synthetic_slide):
    # 2000 x 1500 px are 8.93 x 6.70 tiles of 224 px, 4.46 x 3.35 of 448, 2.23 x 1.67 of 896.
    # At 10x column 4 (0.46 inside) and row 3 (0.35) are out by themselves, but hold kept 20x tiles.
    recipe = THREE.model_copy(update={"tissue": TissueRecipe(method="none")})
    with open_slide(synthetic_slide) as reader:
        assert make_plan(reader, recipe).counts() == {"5x": 6, "10x": 20, "20x": 63}
        alone = recipe.model_copy(update={"scales": parse_scales("10x")})
        assert make_plan(reader, alone).counts() == {"10x": 12}


def test_a_tile_that_just_reaches_the_share_is_kept(synthetic_slide):
    # Wholly inside are 8 x 6 tiles of 20x; the last row's cells end 6 px below the slide.
    recipe = TilingRecipe(
        scales=parse_scales("10x,20x"), tissue=TissueRecipe(method="none", min_share=1.0)
    )
    with open_slide(synthetic_slide) as reader:
        assert make_plan(reader, recipe).counts() == {"10x": 12, "20x": 48}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["5x,10x,20x", "5x,20x", "20x", "2.5x,5x", "3.3333333333333335x,10x,20x"]),
    st.sampled_from([0.5, 0.499, 0.46, 0.31, 0.25]),
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_any_plan_nests_and_keeps_what_it_promises(seed, scales, mpp, origin, min_share):
    x, y = origin
    about = facts(900, 700, mpp, bounds=(x, y, 900 - x - 7, 700 - y - 3))
    recipe = TilingRecipe(
        scales=parse_scales(scales), tile_px=16, tissue=TissueRecipe(min_share=min_share)
    )
    try:
        plan = make_plan(BlockReader(about, seed), recipe)
    except NoTissue:
        return
    ratios = recipe.ratios()
    for number, scale in enumerate(plan.scales):
        order = [(row, column) for column, row in scale.index.tolist()]
        assert order == sorted(set(order)), "row-major, each tile once"
        size = scale.size_level0
        assert size == pytest.approx(plan.scales[-1].size_level0 * ratios[number])
        expected = np.floor(np.array(origin) + scale.index * size + 0.5)
        assert (scale.coords == expected).all()
        inside = np.ones(len(scale.index))
        for axis, extent in enumerate(about.bounds[2:]):
            start = scale.index[:, axis] * size
            inside *= np.clip((extent - start) / size, 0, 1)
        good = (scale.tissue >= np.float32(min_share)) & (inside >= 0.5)
        if number == 0:
            assert (scale.parent == -1).all()
        else:
            above = plan.scales[number - 1]
            step = ratios[number - 1] // ratios[number]
            assert (scale.parent >= 0).all(), "the ancestors of a kept tile are kept"
            assert (above.index[scale.parent] == scale.index // step).all()
        parents = set(plan.scales[number + 1].parent.tolist()) if scale != plan.scales[-1] else ()
        assert all(ok or row in parents for row, ok in enumerate(good)), "kept without a reason"
    assert 0.0 <= plan.tissue_share <= 1.0


@pytest.mark.parametrize("batch_tiles", [1, 3, 21, 24, 50, 1000])
def test_batches_hold_every_tile_once(known_plan, batch_tiles):
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ratios = THREE.ratios()
    batches = known_plan.batches(batch_tiles)
    for batch in batches:
        again = pickle.loads(pickle.dumps(batch))
        assert len(again) == len(batch) > 0
        assert len(batch) <= max(batch_tiles, 21)
        for tile in range(len(batch)):
            scale, row = int(batch.tile_scale[tile]), int(batch.plan_row[tile])
            seen[scale].append(row)
            per_block = 4 // ratios[scale]
            whole = batch.blocks[batch.tile_block[tile]] * per_block + batch.tile_index[tile]
            assert (whole == known_plan.scales[scale].index[row]).all()
            assert (batch.tile_index[tile] < per_block).all()
    assert {k: sorted(v) for k, v in seen.items()} == {
        number: list(range(len(scale.index))) for number, scale in enumerate(known_plan.scales)
    }
    if batch_tiles == 1000:
        assert len(batches) == 1


def test_the_same_slide_gives_the_same_plan(synthetic_slide, known_plan):
    with open_slide(synthetic_slide) as reader:
        again = make_plan(reader, THREE)
    assert pickle.dumps(again.scales) == pickle.dumps(known_plan.scales)


@pytest.mark.parametrize(
    ("mpp", "downsamples", "level", "tile_level_px"),
    [
        (0.5, (1.0, 4.0), 0, 224),
        (0.499, (1.0, 2.0003, 4.002), 0, 224),
        (0.25, (1.0, 4.0), 0, 448),
        (0.25, (1.0, 2.0005, 4.0), 1, 224),
        (0.2498, (1.0, 2.0, 4.0), 1, 224),
        (0.125, (1.0, 2.0, 8.0), 1, 448),
        (0.25, (1.0, 2.5, 4.0), 0, 448),
        (0.509, (1.0,), 0, 224),
    ],
)
def test_the_level_and_the_whole_pixels_of_a_tile(mpp, downsamples, level, tile_level_px):
    geometry = read_geometry(facts(mpp=mpp, downsamples=downsamples), THREE)
    assert geometry.level == level
    assert geometry.tile_size_level == tile_level_px
    assert geometry.tile_size_level0 == pytest.approx(tile_level_px * downsamples[level])


@settings(max_examples=200, deadline=None)
@given(st.floats(1.3, 2.04))
def test_whole_pixels_survive_any_downsample(downsample):
    # 224 * d / d is not always 224 in floating point; then tiles would be resampled by a fraction.
    about = facts(mpp=0.5 / downsample, downsamples=(1.0, downsample))
    assert read_geometry(about, THREE).tile_size_level == 224.0


def test_a_fraction_stays_a_fraction():
    geometry = read_geometry(facts(mpp=0.46), THREE)
    assert geometry.tile_size_level == pytest.approx(224 * 0.5 / 0.46)
    assert not geometry.tile_size_level.is_integer()
    assert geometry.scale_size_level0(0) == pytest.approx(4 * 224 * 0.5 / 0.46)


def test_a_slide_coarser_than_the_finest_scale():
    with pytest.raises(MppUnusable, match=r"20x needs 0\.5"):
        read_geometry(facts(mpp=0.52), THREE)
    assert read_geometry(facts(mpp=0.52), TilingRecipe(scales=parse_scales("10x"))).level == 0


def test_a_slide_without_mpp():
    with pytest.raises(MppUnknown, match="--mpp"):
        read_geometry(facts(mpp=None), THREE)
    with pytest.raises(MppUnusable, match="not square"):
        read_geometry(replace(facts(mpp=None), mpp_problem="its pixels are not square"), THREE)


def test_glass_alone_has_no_tissue(tmp_path):
    path = tmp_path / "blank.svs"
    write_svs(np.full((500, 600, 3), 244, np.uint8), path, mpp=0.5, objective_power=20.0)
    with open_slide(path) as reader, pytest.raises(NoTissue, match=r"blank\.svs.*20x"):
        make_plan(reader, THREE)


@pytest.mark.parametrize(("width", "height"), [(80, 300), (300, 80), (100, 200), (1, 1)])
def test_a_slide_smaller_than_half_a_tile_says_so(width, height):
    recipe = TilingRecipe(scales=parse_scales("20x"), tissue=TissueRecipe(method="none"))
    with pytest.raises(NoTissue, match=f"{width} x {height} px are less than half a 20x tile"):
        make_plan(BlockReader(facts(width, height), 0), recipe)


def test_the_limit_on_tiles(synthetic_slide):
    with open_slide(synthetic_slide) as reader:
        with pytest.raises(TooManyTiles, match="52 tiles, the limit is 51"):
            make_plan(reader, THREE, max_tiles=51)
        assert make_plan(reader, THREE, max_tiles=52).total_tiles() == 52


@pytest.mark.realdata
def test_two_files_of_one_region_have_the_same_tiles(real_data):
    counts = []
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.svs"):
        with open_slide(real_data / "slides" / name) as reader:
            counts.append(make_plan(reader, THREE).counts())
    assert counts[0]["20x"] > 40
    assert all(abs(counts[0][name] - counts[1][name]) <= 2 for name in counts[0])


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "mpp", "scales"),
    [
        ("CMU-1-Small-Region.svs", None, "20x"),
        ("CMU-1-Small-Region.pyramid.svs", None, "20x"),
        ("tcga-cr-7395-01a-01-ts1.svs", 0.5, "20x"),
        ("camelyon-lowpower-jpeg.dcm", None, "0.3x"),
    ],
)
def test_excluding_ink_costs_no_tissue_where_there_is_none(real_data, name, mpp, scales):
    masks = []
    for pens in ("keep", "exclude"):
        recipe = TilingRecipe(scales=parse_scales(scales), tissue=TissueRecipe(pens=pens))
        with open_slide(real_data / "slides" / name, mpp=mpp) as reader:
            found = find_tissue(reader, recipe, read_geometry(reader.facts, recipe))
        masks.append(found.tissue)
    assert masks[0].any()
    assert (masks[0] == masks[1]).all()
