"""The scale of a slide: what its file says, what was given instead, and what is said of the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.errors import MppUnknown, MppUnusable
from cmamil_sdk.slides import SlideFacts, open_slide
from cmamil_sdk.slides.base import Level
from cmamil_sdk.slides.slide_properties import slide_facts
from cmamil_sdk.tiling.geometry import read_geometry
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

from .tiffs import picture, write_levels

TAGGED = "Microns per pixel are those of the TIFF's resolution tags."


class Described:
    """A slide that is nothing but its metadata."""

    def __init__(self, levels: tuple[tuple[int, int], ...] = ((1000, 800),), **properties: str):
        self.properties = {
            {"mpp_x": "openslide.mpp-x", "mpp_y": "openslide.mpp-y"}.get(name, name): value
            for name, value in properties.items()
        }
        self.dimensions = levels[0]
        self.level_dimensions = levels
        width, height = levels[0]
        self.level_downsamples = [(width / w + height / h) / 2 for w, h in levels]


def facts_of(slide: Described, override: float | None = None) -> SlideFacts:
    return slide_facts(
        Path("case.svs"),
        slide,
        override_mpp=override,
        compression=None,
        reader="openslide",
        reason="asked for",
    )


def aperio(path: Path, said: str, **tags: Any) -> SlideFacts:
    """The facts of a real file whose Aperio comment ends in ``said``."""
    text = f"Aperio Image Library v1\r\n120x90 [0,0 120x90] (64x64) JPEG/YCC Q=85{said}"
    write_levels(path, [picture(90, 120)], description=text, **tags)
    with open_slide(path) as reader:
        assert reader.facts.vendor == "aperio"
        return reader.facts


@pytest.mark.parametrize(
    ("per_unit", "unit", "mpp"),
    [
        (20_000, "CENTIMETER", 0.5),
        (50_800, "INCH", 0.5),
        (20_000, "NONE", None),  # without a unit, the numbers are an aspect ratio
        (300, "INCH", None),  # a printer's
        (72, "INCH", None),
        (0, "INCH", None),
    ],
)
def test_resolution_tags_where_the_vendor_says_nothing(tmp_path, per_unit, unit, mpp):
    facts = aperio(
        tmp_path / "tagged.svs",
        "|AppMag = 20",
        resolution=(per_unit, per_unit),
        resolutionunit=unit,
    )
    assert facts.mpp == (None if mpp is None else pytest.approx(mpp))
    assert facts.mpp_source == ("unknown" if mpp is None else "metadata")
    assert facts.warnings == (() if mpp is None else (TAGGED,))
    assert facts.mpp_problem is None


def test_what_the_vendor_wrote_goes_before_the_tags(tmp_path):
    tags = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    facts = aperio(tmp_path / "both.svs", "|AppMag = 20|MPP = 0.499", **tags)
    assert (facts.mpp, facts.warnings) == (0.499, ())


def test_tags_of_pixels_that_are_not_square_are_no_scale(tmp_path):
    tags = {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}
    facts = aperio(tmp_path / "tall.svs", "|AppMag = 20", **tags)
    with pytest.raises(MppUnusable, match=r"not square \(0\.25 x 0\.5 microns\)"):
        facts.require_mpp()


def test_an_objective_is_no_scale_but_is_named(tmp_path):
    facts = aperio(tmp_path / "power.svs", "|AppMag = 40")
    assert (facts.mpp, facts.mpp_source, facts.objective_power) == (None, "unknown", 40.0)
    with pytest.raises(MppUnknown, match=r"objective, 40x, suggests about 0\.25"):
        facts.require_mpp()
    silent = aperio(tmp_path / "silent.svs", "")
    with pytest.raises(MppUnknown, match=r"about 0\.25 for 40x"):
        silent.require_mpp()


@pytest.mark.parametrize("power", ["0", "-20", "nan", "twenty"])
def test_an_objective_that_is_none_is_not_named(power):
    facts = facts_of(Described(**{"openslide.objective-power": power}))
    assert facts.objective_power is None
    with pytest.raises(MppUnknown, match=r"about 0\.25 for 40x"):
        facts.require_mpp()


@pytest.mark.parametrize(("known", "axis"), [("mpp_x", "x"), ("mpp_y", "y")])
def test_one_axis_is_not_taken_for_both(known, axis):
    with pytest.raises(
        MppUnusable, match=rf"0\.25 microns per pixel along {axis} and nothing else"
    ):
        facts_of(Described(**{known: "0.25"})).require_mpp()
    assert facts_of(Described(**{known: "0.25"}), 0.25).require_mpp() == 0.25


@pytest.mark.parametrize("value", ["0", "-0.5", "0.0005", "999", "inf"])
def test_absurd_values_are_no_scale(value):
    facts = facts_of(Described(mpp_x=value, mpp_y=value))
    with pytest.raises((MppUnusable, MppUnknown), match="--mpp"):
        facts.require_mpp()
    assert facts_of(Described(mpp_x=value, mpp_y=value), 0.5).warnings == ()


@pytest.mark.parametrize(
    ("said", "given", "warning"),
    [
        ({"mpp_x": "0.5", "mpp_y": "0.5"}, 0.51, None),
        (
            {"mpp_x": "0.5", "mpp_y": "0.5"},
            0.25,
            "The slide's metadata says 0.5 µm/px; 0.25 was given and is used.",
        ),
        (
            {"mpp_x": "0.5", "mpp_y": "0.25"},
            0.5,
            "The slide says that its pixels are not square (0.5 x 0.25 microns); 0.5 was given and is "
            "used.",
        ),
        ({"openslide.objective-power": "20"}, 0.33, None),  # with an adapter
        (
            {"openslide.objective-power": "20"},
            0.25,
            "The slide's objective, 20x, suggests about 0.5 µm/px; 0.25 was given and is used.",
        ),
        ({}, 0.25, None),
    ],
)
def test_what_contradicts_a_given_scale_is_told(said, given, warning):
    facts = facts_of(Described(**said), given)
    assert (facts.mpp, facts.mpp_source) == (given, "override")
    assert facts.warnings == (() if warning is None else (warning,))


def test_a_scale_within_tolerance_is_taken_for_the_nominal_one_and_no_other():
    recipe = TilingRecipe(scales=parse_scales("20x"))
    assert 0 < recipe.mpp_tolerance < 0.1
    near = 0.5 * (1 - recipe.mpp_tolerance * 0.9)
    far = 0.5 * (1 - recipe.mpp_tolerance * 1.5)
    one = read_geometry(facts_of(Described(mpp_x=str(near), mpp_y=str(near))), recipe)
    assert one.tile_size_level0 == recipe.tile_px, "read pixel by pixel"
    other = read_geometry(facts_of(Described(mpp_x=str(far), mpp_y=str(far))), recipe)
    assert other.tile_size_level0 == pytest.approx(recipe.tile_px * 0.5 / far), "averaged"
    too_coarse = 0.5 * (1 + recipe.mpp_tolerance * 1.5)
    with pytest.raises(
        MppUnusable, match="a model of coarser scales, or correct the value with --mpp"
    ):
        read_geometry(facts_of(Described(mpp_x=str(too_coarse), mpp_y=str(too_coarse))), recipe)


def bounded(x: str, y: str, width: str, height: str) -> SlideFacts:
    names = ("x", "y", "width", "height")
    values = zip(names, (x, y, width, height), strict=True)
    return facts_of(Described(**{f"openslide.bounds-{name}": value for name, value in values}))


@pytest.mark.parametrize(
    "said", [("1200", "0", "300", "200"), ("10", "10", "0", "9"), ("-9", "0", "5", "5")]
)
def test_bounds_that_hold_nothing_are_told_and_not_used(said):
    facts = bounded(*said)
    assert facts.bounds == (0, 0, 1000, 800)
    assert facts.warnings == (
        "The bounds in the slide's metadata lie outside it; all of it is read.",
    )


def test_bounds_within_the_slide_are_used_and_cut():
    for said, used in (
        (("10", "20", "300", "200"), (10, 20, 300, 200)),
        (("900", "700", "1e300", "200"), (900, 700, 100, 100)),
    ):
        facts = bounded(*said)
        assert (facts.bounds, facts.warnings) == (used, ())
    assert bounded("nan", "0", "9", "9").bounds == (0, 0, 1000, 800)


@pytest.mark.parametrize(
    "levels",
    [
        ((1000, 800), (500, 400), (250, 200)),
        ((1001, 801), (500, 400), (250, 200), (62, 50)),
        ((1001, 801), (501, 401), (251, 201), (126, 101)),
        ((46_000, 32_893), (11_500, 8223), (2875, 2055), (1437, 1027)),
        ((5, 3), (2, 1)),
        ((4443, 3567), (2221, 1783)),
    ],
)
def test_levels_that_were_rounded_up_or_down_are_read(levels):
    facts = facts_of(Described(levels=levels))
    assert len(facts.levels) == len(levels)
    assert facts.warnings == ()


@pytest.mark.parametrize(
    "levels",
    [
        ((1000, 800), (500, 400), (250, 400)),
        ((1, 100), (1, 50)),
        ((100_000, 80_000), (50_000, 40_000), (25_600, 20_000)),
    ],
    ids=["half", "narrow", "filled up to whole tiles in width"],
)
def test_levels_that_one_factor_does_not_explain_are_left_out(levels):
    facts = facts_of(Described(levels=levels))
    assert len(facts.levels) == len(levels) - 1
    assert "has another shape" in facts.warnings[0]


def test_levels_of_another_shape_are_not_read(tmp_path):
    """OpenSlide would say that this level is 1.5 times smaller and read it so."""
    pixels = picture(400, 512)
    path = write_levels(tmp_path / "odd.tiff", [pixels, pixels[:, ::2], pixels[::4, ::4]])
    for reader in ("auto", "openslide"):
        with open_slide(path, reader=reader) as opened:
            facts = opened.facts
        assert facts.levels == (Level(512, 400, 1.0),)
        assert facts.warnings == (
            "Level 1, 256 x 400 pixels, has another shape than the slide; it and those after it are not "
            "read.",
        )
