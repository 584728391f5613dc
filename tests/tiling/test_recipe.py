"""Recipes: what nests is taken, everything else refused by name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cmamil_sdk.errors import ScaleMismatch
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
        {"scale_source": "stored"},
        {"mpp_tolerance": 0.5},
        {"overlap": 10},
        {"tissue": {"method": "magic"}},
        {"tissue": {"min_share": 1.5}},
        {"tissue": {"cell_um": 0.0}},
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
