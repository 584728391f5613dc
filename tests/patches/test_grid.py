"""CMA-MIL's grid: the published tool's on slides of 20x and 40x, and by microns on others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmamil_sdk.errors import FieldInvalid, MppUnknown, MppUnusable
from cmamil_sdk.patches.grid import magnifications, patch_grids, scale_of_slide
from cmamil_sdk.patches.manifest import PatchRecipe
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.slides.open import open_slide
from cmamil_sdk.synthetic import write_svs


def facts(
    width: int = 1300,
    height: int = 1000,
    *,
    mpp: float | None = 0.5,
    power: float | None = None,
    origin: tuple[int, int] = (0, 0),
    downsamples: tuple[float, ...] = (1.0,),
    problem: str | None = None,
) -> SlideFacts:
    return SlideFacts(
        path="slide.svs",
        slide_id="slide",
        width=width + origin[0],
        height=height + origin[1],
        bounds=(*origin, width, height),
        levels=tuple(Level(int(width / d), int(height / d), d) for d in downsamples),
        mpp=mpp,
        mpp_source="metadata" if mpp else "unknown",
        mpp_problem=problem,
        objective_power=power,
        vendor="generic",
        compression=None,
        reader="openslide",
        reader_reason="",
    )


def recipes(powers: tuple[int, ...] = (0, 1, 2), overlap: int = 0) -> tuple[PatchRecipe, ...]:
    return tuple(
        PatchRecipe(scale=scale, tile_px=224, overlap_px=overlap, threshold=15, quality=70)
        for scale in magnifications(20, list(powers))
    )


def test_magnifications_are_halvings_coarse_to_fine() -> None:
    assert [(s.name, s.mpp) for s in magnifications(20, [0, 2, 1])] == [
        ("5x", 2.0),
        ("10x", 1.0),
        ("20x", 0.5),
    ]
    assert [s.name for s in magnifications(5, [1])] == ["2.5x"]
    with pytest.raises(FieldInvalid, match="twice"):
        magnifications(20, [1, 1])


@pytest.mark.parametrize("mpp", [0.5, 0.499, 0.2525, 0.25])
def test_the_grid_is_that_of_deep_zoom(mpp: float) -> None:
    """6 x 5, 3 x 3 and 2 x 2 tiles of 224 px on 1,300 x 1,000 px at 1, 2 and 4 times coarser."""
    factor = round(0.5 / mpp)
    grids = patch_grids(facts(1300 * factor, 1000 * factor, mpp=mpp), recipes())
    assert [(g.columns, g.rows) for g in grids] == [(2, 2), (3, 3), (6, 5)]
    assert [g.step_level0 for g in grids] == [896 * factor, 448 * factor, 224 * factor]
    assert grids[2].corner(5, 4) == (1120 * factor, 896 * factor)


@given(
    mpp=st.floats(0.1, 0.5),
    width=st.integers(300, 5000),
    origin=st.tuples(st.integers(0, 500), st.integers(0, 500)),
)
def test_all_magnifications_nest_on_any_slide(
    mpp: float, width: int, origin: tuple[int, int]
) -> None:
    fine, coarse = (
        patch_grids(facts(width, 900, mpp=mpp, origin=origin), recipes())[i] for i in (2, 0)
    )
    assert coarse.step_level0 == pytest.approx(4 * fine.step_level0)
    assert coarse.corner(0, 0) == fine.corner(0, 0) == origin
    for index in range(coarse.columns):
        ours, theirs = coarse.corner(index, 0)[0], fine.corner(4 * index, 0)[0]
        assert abs(ours - theirs) <= 1
    assert fine.columns == math.ceil(width / fine.step_level0 - 1e-9)
    assert fine.step_level0 == pytest.approx(224 * 0.5 / mpp, rel=0.021)


@given(mpp=st.floats(0.1, 0.5))
def test_a_magnification_has_one_grid_whichever_others_are_tiled(mpp: float) -> None:
    together = patch_grids(facts(mpp=mpp), recipes())
    assert [patch_grids(facts(mpp=mpp), (r.recipe,))[0] for r in together] == list(together)


def test_overlap_widens_the_image_and_not_the_step() -> None:
    grid = patch_grids(facts(), recipes((0,), overlap=16))[0]
    assert (grid.recipe.image_px, grid.geometry.tile_size_level0) == (256, 256)
    assert grid.corner(0, 0) == (-16, -16)
    assert grid.corner(1, 0) == (208, -16)


def test_a_level_near_the_magnification_is_read() -> None:
    many = facts(4000, 4000, downsamples=(1.0, 2.0005, 4.001))
    assert [g.geometry.level for g in patch_grids(many, recipes())] == [2, 1, 0]


def test_the_scale_of_a_slide() -> None:
    assert scale_of_slide(facts(mpp=0.25, power=40), 20) == (0.25, "metadata")
    assert scale_of_slide(facts(mpp=None, power=40), 20) == (0.25, "objective")
    assert scale_of_slide(facts(mpp=None), 20) == (0.5, "objective")


@pytest.mark.parametrize(
    ("slide", "error", "words"),
    [
        (facts(mpp=None), MppUnknown, r"--objective .* --mpp"),
        (facts(mpp=None, problem="it says 1e6"), MppUnusable, r"it says 1e6.*--mpp"),
        (facts(mpp=None, problem="no squares", power=20), MppUnusable, r"no squares.*--mpp.*20x"),
        (facts(mpp=0.25, power=20), MppUnusable, r"0\.25 .* 20x.* --mpp"),
    ],
)
def test_a_slide_that_does_not_say_its_scale(
    slide: SlideFacts, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        scale_of_slide(slide, None)


def test_a_slide_coarser_than_the_magnification_is_refused() -> None:
    with pytest.raises(MppUnusable, match=r"scale 20x needs 0\.5"):
        patch_grids(facts(mpp=1.0), recipes((0,)))


def test_pixels_are_the_slides_and_white_outside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (300, 300, 3), dtype=np.uint8).repeat(1, 0)
    write_svs(pixels, tmp_path / "s.svs", mpp=0.5, objective_power=20.0)
    with open_slide(tmp_path / "s.svs") as reader:
        stored = reader.read_region(0, 0, 0, 300, 300)
        grid = patch_grids(reader.facts, recipes((0,), overlap=16))[0]
        image = grid.read(reader, 1, 0)
        assert image is not None
        # x from 208 to 464 and y from -16 to 240: the slide ends at 300, and begins at 0
        np.testing.assert_array_equal(image[16:, :92], stored[:240, 208:])
        assert (image[:16] == 255).all() and (image[:, 92:] == 255).all()
        np.testing.assert_array_equal(grid.inside(image, 1, 0), stored[:240, 208:])
