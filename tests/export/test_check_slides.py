"""Which slides calibrate and which are judged, and the tiles that are taken of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from cmamil_sdk.cli.slide_list import ListedSlide
from cmamil_sdk.errors import FieldInvalid, NoTissue, RunInvalid
from cmamil_sdk.export.check_slides import deal_slides, sample_tiles
from cmamil_sdk.export.precisions import lower_precisions
from cmamil_sdk.synthetic import write_svs
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

SLIDES = [ListedSlide(Path(f"{name}.svs")) for name in "abcdef"]
ROWS = "slide,patient,label,fold,split\n" + "".join(
    f"{slide},{slide},{label},{fold},{part}\n"
    for slide, label, fold, part in [
        ("a", "x", 0, "train"),
        ("b", "y", 0, "val"),
        ("c", "x", 0, "test"),
        ("d", "y", 0, "test"),
        ("a", "x", 1, "test"),
        ("b", "y", 1, "train"),
    ]
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "splits.csv").write_text(ROWS)
    return tmp_path


LABELS = ("x", "y")
deal = partial(deal_slides, labels=LABELS)


def ask(precisions, slides, run):
    return lower_precisions(precisions, slides, run=run, folds=[0], labels=LABELS)


def names(slides) -> str:
    return "".join(slide.path.stem for slide in slides)


def test_the_folds_test_slides_are_judged_and_the_others_calibrate(run):
    dealt = deal(SLIDES, run, [0], calibrate=True)
    assert (names(dealt.judged), names(dealt.calibration)) == ("cd", "abef")
    assert dealt.labels == {"c": "x", "d": "y"}
    assert dealt.are_held_out
    dealt = deal(SLIDES, run, [0], calibrate=False)
    assert (names(dealt.judged), names(dealt.calibration)) == ("cd", "")
    assert names(deal(SLIDES, run, [1], calibrate=True).judged) == "a"
    assert not deal(SLIDES, run, [0, 1], calibrate=True).are_held_out


def test_without_test_slides_half_are_judged(run, tmp_path):
    for fold, slides in ((0, SLIDES[:2]), (0, SLIDES[2:4]), (7, SLIDES)):
        dealt = deal(slides, run, [fold], calibrate=True)
        assert len(dealt.judged) == len(dealt.calibration) == len(slides) // 2
        assert {*dealt.judged, *dealt.calibration} == {*slides}
        assert dealt == deal(slides, run, [fold], calibrate=True), "drawn by a seed"
    assert not dealt.are_held_out
    dealt = deal(SLIDES, tmp_path / "no run", [0], calibrate=False)
    assert (names(dealt.judged), dealt.are_held_out) == ("abcdef", False)


def test_a_list_names_classes_where_the_run_does_not(run):
    listed = [ListedSlide(Path("e.svs"), label="y"), ListedSlide(Path("c.svs"), label="y")]
    dealt = deal(listed, run, [2], calibrate=False)
    assert dealt.labels == {"e": "y", "c": "y"}


def test_what_cannot_be_dealt(run):
    with pytest.raises(FieldInvalid, match=r"--calibration names 1 slide; name two"):
        deal(SLIDES[:1], run, [0], calibrate=True)
    with pytest.raises(FieldInvalid, match="gives slide e the class 'z'"):
        deal([ListedSlide(Path("e.svs"), label="z")], run, [0], calibrate=False)
    (run / "splits.csv").write_text("slide,fold\na,0\n")
    with pytest.raises(RunInvalid, match="lacks a column"):
        deal(SLIDES, run, [0], calibrate=True)


@pytest.mark.parametrize(
    ("precisions", "slides", "said"),
    [
        (["int8"], [], "with --calibration"),
        (["fp32"], SLIDES, "--calibration has no effect with --precision fp32"),
        (["fp8"], [], "--precision fp8 is unknown"),
        (["auto"], [], "--precision auto is unknown"),
    ],
)
def test_precisions_and_slides_that_do_not_belong_together(run, precisions, slides, said):
    with pytest.raises(FieldInvalid, match=said):
        ask(precisions, slides, run)


def test_precisions_that_are_asked_for(run):
    assert ask(["fp32"], [], run).asked == ()
    lower = ask(["fp32", "fp16", "int8"], SLIDES, run)
    assert lower.asked == ("fp16", "int8")
    assert lower.dealt is not None and names(lower.dealt.judged) == "cd"
    assert ask(["bf16"], [], run).dealt is None


def test_tiles_of_each_slide_and_every_scale(synthetic_slide, tmp_path):
    recipe = TilingRecipe(scales=parse_scales("5x,20x"))
    slides = [ListedSlide(synthetic_slide), ListedSlide(synthetic_slide, mpp=0.5)]
    tiles = sample_tiles(slides, recipe, 20)
    assert tiles.shape == (20, 224, 224, 3)
    np.testing.assert_array_equal(tiles, sample_tiles(slides, recipe, 20))
    assert len(sample_tiles(slides[:1], recipe, 10_000)) == 36 + 4
    write_svs(
        np.full((500, 500, 3), 250, np.uint8), tmp_path / "glass.svs", mpp=0.5, objective_power=20.0
    )
    masked = recipe.model_copy(update={"tissue": TissueRecipe(method="mask")})
    with pytest.raises(FieldInvalid, match="columns slide and mask"):
        sample_tiles(slides, masked, 4)
    with pytest.raises(NoTissue):
        sample_tiles([ListedSlide(tmp_path / "glass.svs")], recipe, 4)
