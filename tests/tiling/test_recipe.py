"""Recipes: what nests is taken, everything else refused by name."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import ScaleMismatch
from cmamil_sdk.features.file import recipe_key
from cmamil_sdk.tiling.recipe import Scale, TilingRecipe, parse_scales


def test_scales_come_coarse_to_fine_whatever_the_order():
    scales = parse_scales("20x, 5x,10x")
    assert [(s.name, s.mpp) for s in scales] == [("5x", 2.0), ("10x", 1.0), ("20x", 0.5)]
    assert parse_scales("2.5x")[0] == Scale(name="2.5x", mpp=4.0)


NUMBERS_THAT_ARE_NONE = ("0x", "-5x", "+5x", "5 x", "nanx", "infx", "1e400x", "٥x")
OUT_OF_RANGE = ("0.001x", "1e-400x")
NOT_EVEN_NUMBERS = ("", ",", "20", "x", "20X", "5x,,20x", "5x;20x")


@pytest.mark.parametrize("text", [*NUMBERS_THAT_ARE_NONE, *OUT_OF_RANGE, *NOT_EVEN_NUMBERS])
def test_what_is_no_magnification(text):
    with pytest.raises(ScaleMismatch, match="5x,10x,20x"):
        parse_scales(text)


def test_a_name_longer_than_a_group_of_the_feature_file():
    with pytest.raises(ScaleMismatch):
        parse_scales("5." + "0" * 40 + "x")


@pytest.mark.parametrize(
    "mpp", [(), (0.5, 1.0), (1.0, 1.0), (1.25, 0.5), (0.75, 0.5), (2.0, 1.0, 0.4)]
)
def test_scales_that_do_not_nest(mpp):
    with pytest.raises(ScaleMismatch):
        TilingRecipe(scales=tuple(Scale(name=f"s{i}", mpp=m) for i, m in enumerate(mpp)))


def test_a_scale_named_twice():
    with pytest.raises(ScaleMismatch, match="twice"):
        TilingRecipe(scales=(Scale(name="a", mpp=1.0), Scale(name="a", mpp=0.5)))


def test_ratios_count_finest_tiles():
    assert TilingRecipe(scales=parse_scales("5x,10x,20x")).ratios() == (4, 2, 1)
    assert TilingRecipe(scales=parse_scales("3x,9x")).ratios() == (3, 1)
    assert TilingRecipe(scales=parse_scales("1.25x,20x")).ratios() == (16, 1)
    assert TilingRecipe(scales=parse_scales("20x")).ratios() == (1,)


@pytest.mark.parametrize(
    "fields",
    [
        {"tile_px": 8},
        {"tile_px": 1 << 20},
        {"scale_source": "coarsest"},
        {"mpp_tolerance": 0.5},
        {"overlap": 10},
        {"tissue": {"method": "magic"}},
        {"tissue": {"min_share": 1.5}},
        {"tissue": {"cell_um": 0.0}},
        {"tissue": {"pens": "erase"}},
        {"tissue": {"fill_holes_um2": float("inf")}},
        {"tissue": {"drop_specks_um2": -1.0}},
        {"tissue": {"edge_threshold": 256.0}},
        {"sample": {"max_tiles": 0}},
        {"sample": {"max_tiles": 5, "seed": -1}},
    ],
)
def test_fields_out_of_range_or_unknown(fields):
    with pytest.raises(ValidationError):
        TilingRecipe(scales=parse_scales("20x"), **fields)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "é", "x" * 33])
def test_scale_names_are_plain(name):
    with pytest.raises(ValidationError):
        Scale(name=name, mpp=0.5)


def test_scales_too_far_apart_to_be_read_as_one_block():
    assert TilingRecipe(scales=parse_scales("1.25x,20x")).ratios() == (16, 1)
    with pytest.raises(ScaleMismatch, match="16 times"):
        TilingRecipe(scales=parse_scales("1x,20x"))


OLD_JSON = (
    '{"scales":[{"name":"5x","mpp":2.0},{"name":"10x","mpp":1.0},{"name":"20x","mpp":0.5}],'
    '"tile_px":224,"scale_source":"finest","mpp_tolerance":0.02,'
    '"tissue":{"method":"otsu","min_value":0.15,"min_share":0.25,"cell_um":8.0}}'
)
"""As version 0.1.0 wrote it, before there were ink, holes, specks and samples."""


def test_an_old_recipe_keeps_its_meaning_its_text_and_its_hash():
    old = TilingRecipe.model_validate_json(OLD_JSON)
    tissue = old.tissue
    assert (tissue.pens, tissue.fill_holes_um2, tissue.drop_specks_um2) == ("keep", 0.0, 0.0)
    assert old.sample is None
    assert old == TilingRecipe(scales=parse_scales("5x,10x,20x"))
    assert old.model_dump_json() == OLD_JSON
    encoder = EncoderInfo(
        id="test", weights_sha256="0" * 64, dim=4, tile_px=224, mean=(0, 0, 0), std=(1, 1, 1)
    )
    key = "f776787937bab8724ccc25a8dee51484502cb4fa0a0a2bec3cec95ccbb7a503d"
    assert recipe_key(old, encoder) == key


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("tissue", "edge_threshold", 14.0),
        ("tissue", "edge_area", "inside"),
        ("tissue", "pens", "exclude"),
        ("tissue", "pen_min_um2", 1.0),
        ("tissue", "fill_holes_um2", 1.0),
        ("tissue", "drop_specks_um2", 1.0),
        ("sample", "max_tiles", 5),
    ],
)
def test_later_fields_are_written_and_hashed_where_they_say_something(part, name, value):
    recipe = TilingRecipe.model_validate({**json.loads(OLD_JSON), part: {name: value}})
    document = recipe.model_dump(mode="json")
    assert document[part][name] == value
    assert TilingRecipe.model_validate(document) == recipe
    assert recipe != TilingRecipe.model_validate_json(OLD_JSON)
