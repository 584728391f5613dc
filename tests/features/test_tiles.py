"""Pixels of tiles: coarse ones are area averages of the finest, whatever the slide stores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import openslide
import pytest

from cmamil_sdk.features.tiles import read_tiles
from cmamil_sdk.slides import direct_reader, open_slide
from cmamil_sdk.slides.decoded_tiles import DecodedTiles
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

THREE = TilingRecipe(scales=parse_scales("5x,10x,20x"))
EVERYWHERE = TissueRecipe(method="none")


def all_tiles(reader, recipe, batch_tiles=24):
    """Per scale ``{(column, row): pixels}`` and the same for ``ok``."""
    plan = make_plan(reader, recipe)
    pixels = {name: {} for name in recipe.names}
    ok = {name: {} for name in recipe.names}
    for batch in plan.batches(batch_tiles):
        tiles = read_tiles(reader, batch)
        for tile in range(len(batch)):
            scale = plan.scales[batch.tile_scale[tile]]
            where = tuple(scale.index[batch.plan_row[tile]].tolist())
            pixels[scale.name][where] = tiles.pixels[tile]
            ok[scale.name][where] = bool(tiles.ok[tile])
    return pixels, ok


def level0(path, width, height):
    """The whole of level 0 through OpenSlide alone, padded with white to ``width`` x ``height``."""
    with openslide.OpenSlide(path) as slide:
        w, h = slide.dimensions
        inside = np.asarray(slide.read_region((0, 0), 0, (w, h)).convert("RGB"))
    out = np.full((height, width, 3), 255, np.uint8)
    out[:h, :w] = inside
    return out


def box_mean(pixels, factor):
    h, w = pixels.shape[0] // factor, pixels.shape[1] // factor
    return pixels.reshape(h, factor, w, factor, 3).mean(axis=(1, 3), dtype=np.float64)


def test_every_tile_is_the_area_average_of_level_0(synthetic_slide):
    truth = level0(synthetic_slide, 2688, 1792)
    with open_slide(synthetic_slide) as reader:
        pixels, ok = all_tiles(reader, THREE)
    assert {name: len(tiles) for name, tiles in pixels.items()} == {"5x": 4, "10x": 12, "20x": 36}
    for name, ratio in zip(THREE.names, THREE.ratios(), strict=True):
        edge = 224 * ratio
        for (column, row), tile in pixels[name].items():
            region = truth[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
            assert np.abs(tile - box_mean(region, ratio)).max() <= 0.5, (name, column, row)
        assert all(ok[name].values())


def test_the_finest_tiles_of_a_20x_slide_are_its_pixels(synthetic_slide):
    truth = level0(synthetic_slide, 2688, 1792)
    with open_slide(synthetic_slide) as reader:
        pixels, _ = all_tiles(reader, TilingRecipe(scales=parse_scales("20x")))
    for (column, row), tile in pixels["20x"].items():
        assert (tile == truth[row * 224 :, column * 224 :][:224, :224]).all()


@pytest.mark.parametrize("batch_tiles", [1, 30, 500])
def test_pixels_do_not_depend_on_the_batch(synthetic_slide, batch_tiles):
    with open_slide(synthetic_slide) as reader:
        usual, _ = all_tiles(reader, THREE)
        other, _ = all_tiles(reader, THREE, batch_tiles)
    assert all((usual[n][i] == other[n][i]).all() for n in usual for i in usual[n])


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """900 x 700 px of noise in 4 px grains."""
    rng = np.random.default_rng(5)
    grains = rng.integers(60, 230, (175, 225, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)

    def make(mpp: float, downsamples=(1, 4, 16)):
        path = tmp_path_factory.mktemp("noise") / f"{mpp}.svs"
        write_svs(grains, path, mpp=mpp, objective_power=10 / mpp, downsamples=downsamples)
        return path

    return make


def test_a_40x_slide_is_averaged_two_by_two(noise):
    path = noise(0.25)
    truth = level0(path, 900, 700)
    recipe = TilingRecipe(scales=parse_scales("20x"), tissue=EVERYWHERE)
    with open_slide(path) as reader:
        pixels, _ = all_tiles(reader, recipe)
    assert set(pixels["20x"]) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    for column in (0, 1):
        region = truth[:448, column * 448 : (column + 1) * 448]
        assert np.abs(pixels["20x"][column, 0] - box_mean(region, 2)).max() <= 0.5


def test_a_mpp_that_is_no_whole_fraction_is_averaged_by_area(noise):
    path = noise(0.46)
    recipe = TilingRecipe(scales=parse_scales("20x"), tile_px=64, tissue=EVERYWHERE)
    step = 0.5 / 0.46
    size = 64 * step
    truth = level0(path, 1000, 800).astype(np.float64)
    with open_slide(path) as reader:
        pixels, _ = all_tiles(reader, recipe)
    for column, row in ((0, 0), (3, 2), (7, 5)):
        tile = pixels["20x"][column, row]
        for cell_x, cell_y in ((0, 0), (5, 40), (63, 63), (31, 1)):
            x0, y0 = column * size + cell_x * step, row * size + cell_y * step
            wx = np.clip(
                np.minimum(x0 + step, np.arange(1000) + 1) - np.maximum(x0, np.arange(1000)), 0, 1
            )
            wy = np.clip(
                np.minimum(y0 + step, np.arange(800) + 1) - np.maximum(y0, np.arange(800)), 0, 1
            )
            mean = np.einsum("y,x,yxc->c", wy, wx, truth) / (wx.sum() * wy.sum())
            assert np.abs(tile[cell_y, cell_x] - mean).max() <= 0.51


@pytest.fixture
def without_level_1(tmp_path):
    """896 px square at 20x, 5x is stored as level 1 and zeroed: whoever reads that loses the tile."""
    import tifffile

    path = tmp_path / "damaged.svs"
    rng = np.random.default_rng(1)
    fine = rng.integers(100, 200, (896, 896, 3), dtype=np.uint8)
    write_svs(fine, path, mpp=0.5, objective_power=20.0, downsamples=(1, 4))
    with tifffile.TiffFile(path) as file:
        coarse = file.pages[-1]
        spans = list(zip(coarse.dataoffsets, coarse.databytecounts, strict=True))
    with path.open("r+b") as raw:
        for offset, size in spans:
            raw.seek(offset)
            raw.write(bytes(size))
    return path


def test_coarse_tiles_come_from_the_finest_even_where_levels_are_stored(without_level_1):
    recipe = TilingRecipe(scales=parse_scales("5x,20x"), tissue=EVERYWHERE)
    with open_slide(without_level_1) as reader:
        pixels, ok = all_tiles(reader, recipe)
    assert all(ok["5x"].values())
    expected = box_mean(level0(without_level_1, 896, 896), 4)
    assert np.abs(pixels["5x"][0, 0] - expected).max() <= 0.5


def test_a_damaged_level_costs_the_scale_that_is_read_from_it_and_no_other(without_level_1):
    recipe = TilingRecipe(
        scales=parse_scales("5x,10x,20x"), tissue=EVERYWHERE, scale_source="stored"
    )
    with open_slide(without_level_1) as reader:
        _, ok = all_tiles(reader, recipe)
    assert {name: set(tiles.values()) for name, tiles in ok.items()} == {
        "5x": {False},
        "10x": {True},
        "20x": {True},
    }


def test_stored_levels_serve_the_scales_they_are_nearest_to(noise):
    """40x, levels at 1, 4 and 16: 20x is averaged from level 0; 10x is level 1, 5x its average."""
    path = noise(0.25)
    recipe = TilingRecipe(
        scales=parse_scales("5x,10x,20x"), tissue=EVERYWHERE, tile_px=32, scale_source="stored"
    )
    with openslide.OpenSlide(path) as slide:
        stored = np.asarray(slide.read_region((0, 0), 1, (224, 175)).convert("RGB"))
    truth = level0(path, 900, 700)
    with open_slide(path) as reader:
        pixels, _ = all_tiles(reader, recipe)
        finest, _ = all_tiles(reader, recipe.model_copy(update={"scale_source": "finest"}))
    assert np.abs(pixels["20x"][2, 1] - box_mean(truth[64:128, 128:192], 2)).max() <= 0.5
    assert (pixels["10x"][2, 1] == stored[32:64, 64:96]).all()
    assert np.abs(pixels["5x"][1, 1] - box_mean(stored[64:128, 64:128], 2)).max() <= 0.5
    assert (finest["20x"][2, 1] == pixels["20x"][2, 1]).all()
    assert (finest["10x"][2, 1] != pixels["10x"][2, 1]).any()


@pytest.mark.parametrize("origin", [(0, 0), (101, 53)])
def test_the_grid_starts_at_the_bounds_and_what_lies_beyond_is_white(noise, origin):
    path = noise(0.5)
    x, y = origin
    recipe = TilingRecipe(scales=parse_scales("10x,20x"), tissue=EVERYWHERE)
    truth = level0(path, 1500, 1500)
    truth[y + 600 :] = 255
    truth[:, x + 620 :] = 255
    with open_slide(path) as reader:
        reader.facts = replace(reader.facts, bounds=(x, y, 620, 600))
        pixels, _ = all_tiles(reader, recipe)
        plan = make_plan(reader, recipe)
    assert len(pixels["20x"]) == 9
    for (column, row), tile in pixels["20x"].items():
        left, top = x + column * 224, y + row * 224
        assert (tile == truth[top : top + 224, left : left + 224]).all()
    assert plan.scales[1].coords[0].tolist() == [x, y]


def test_a_downsample_that_divides_badly_is_still_cut_not_resampled(synthetic_slide):
    """A level whose tile size in level pixels misses a whole number by one bit of a float."""
    ds = next(d for d in np.linspace(1.3, 1.9, 999) if not (224 * d / d).is_integer())
    recipe = TilingRecipe(scales=parse_scales("20x"), tissue=EVERYWHERE)
    with open_slide(synthetic_slide) as reader:
        plan = make_plan(reader, recipe)
        batch = plan.batches(1)[1]  # column 0, row 1
        geometry = replace(
            batch.geometry, downsample=float(ds), tile_size_level0=224 * float(ds), origin=(1, 1)
        )
        geometry = replace(geometry, bounds_end=(2000, 1500))
        asked = []

        class Spy:
            facts = reader.facts

            def read_region(self, *box: int) -> np.ndarray:
                asked.append(box)
                return np.zeros((box[4], box[3], 3), np.uint8)

        read_tiles(Spy(), replace(batch, geometry=geometry))
    assert asked == [(0, math.floor(1 / ds + 0.5), math.floor(224 + 1 / ds + 0.5), 224, 224)]


def test_tiles_side_by_side_share_what_is_decoded(synthetic_slide, monkeypatch):
    """A tile of 224 pixels touches four stored ones of 240; read by itself it decodes each of them."""
    decoded = []
    real = direct_reader.decode_tile
    monkeypatch.setattr(
        direct_reader, "decode_tile", lambda *args: decoded.append(args) or real(*args)
    )
    recipe = TilingRecipe(scales=parse_scales("20x"), tissue=EVERYWHERE)
    with open_slide(synthetic_slide, reader="direct") as reader:
        plan = make_plan(reader, recipe)
        decoded.clear()
        shared = [read_tiles(reader, batch) for batch in plan.batches()]
        once = len(decoded)
        reader.decoded = DecodedTiles(max_bytes=0)
        alone = [read_tiles(reader, batch) for batch in plan.batches()]
    assert once < 1.5 * plan.total_tiles() < 3 * plan.total_tiles() < len(decoded) - once
    for one, other in zip(shared, alone, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("mpp", [0.5, 0.46])
def test_what_is_read_in_strips_is_the_same(noise, monkeypatch, mpp):
    path = noise(mpp)
    recipe = TilingRecipe(scales=parse_scales("5x,20x"), tile_px=64, tissue=EVERYWHERE)
    with open_slide(path) as reader:
        whole, _ = all_tiles(reader, recipe)
        monkeypatch.setattr("cmamil_sdk.tiling.blocks.MAX_READ_PX", 9000)
        strips, _ = all_tiles(reader, recipe)
    for name, tiles in whole.items():
        for where, tile in tiles.items():
            assert np.abs(tile.astype(int) - strips[name][where]).max() <= (mpp != 0.5)


def test_a_bad_stored_tile_spoils_only_the_tiles_above_it(textured_slide, with_zeroed):
    path = with_zeroed(textured_slide, (5, 6))
    recipe = THREE.model_copy(update={"tissue": EVERYWHERE})
    with open_slide(textured_slide) as good, open_slide(path) as bad:
        expected, _ = all_tiles(good, recipe)
        pixels, ok = all_tiles(bad, recipe)
    lost = {n: [i for i, fine in ok[n].items() if not fine] for n in ok}
    assert lost == {"5x": [(1, 1)], "10x": [(2, 3)], "20x": [(5, 6)]}
    for name, tiles in pixels.items():
        for where, tile in tiles.items():
            assert ok[name][where] != bool((tile != expected[name][where]).any())
