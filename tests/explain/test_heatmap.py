"""Evidence lands on the right cells, in the right colour, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.errors import FieldInvalid, SlideNotFound
from cmamil_sdk.explain import draw_heatmap, evidence_grid, save_heatmap
from cmamil_sdk.explain.heatmap import AGAINST, FOR
from cmamil_sdk.explain.holes import LOST
from cmamil_sdk.predict import LocalPredictor, Prediction, evidence
from cmamil_sdk.synthetic import write_svs

from .conftest import BOUNDS, scale_map, with_maps

NAN = float("nan")
CAPTION_PX, GAP_PX, OPACITY = 28, 12, 0.65


def test_cells_hold_the_values_worked_out_by_hand(prediction: Prediction) -> None:
    # 900 x 500 px in cells of 224 px: 5 columns, 3 rows. The first 10x tile has evidence 12 - 4 = 8,
    # a quarter on each of its cells; the second 0 + 4 = 4. At 20x: 3 - 1 = 2, and 1 - 2 = -1.
    expected = [
        [2.0, 2.0 + 2.0, 1.0, 1.0, NAN],
        [2.0, 2.0, 1.0, 1.0, NAN],
        [-1.0, NAN, NAN, NAN, NAN],
    ]
    np.testing.assert_allclose(evidence_grid(prediction, BOUNDS, 0), expected, rtol=1e-6)


def test_another_class_has_its_own_evidence(prediction: Prediction) -> None:
    # Class 1: 0 - 4 = -4, -12 + 4 = -8, 0 - 1 = -1, and 1 - 2 = -1.
    expected = [
        [-1.0, -1.0 - 1.0, -2.0, -2.0, NAN],
        [-1.0, -1.0, -2.0, -2.0, NAN],
        [-1.0, NAN, NAN, NAN, NAN],
    ]
    np.testing.assert_allclose(evidence_grid(prediction, BOUNDS, 1), expected, rtol=1e-6)


def test_rounded_corners_stay_in_their_cell(prediction: Prediction) -> None:
    # 20x tiles of a slide at 0.499 um/px are 224.45 level-0 px; corners are rounded to whole pixels.
    size = 224 * 0.5 / 0.499
    columns = [0, 1, 7, 30]
    corners = [[int(100 + column * size + 0.5), 50] for column in columns]
    one = scale_map("20x", size, corners, [[column, 0, 0] for column in columns])
    grid = evidence_grid(with_maps(prediction, one), (100, 50, 7000, 200), 0)
    assert grid.shape == (1, 32)
    assert np.flatnonzero(~np.isnan(grid[0])).tolist() == columns
    np.testing.assert_allclose(grid[0, columns], np.array(columns) * 2 / 3, rtol=1e-6)


def test_nothing_is_lost_on_a_predicted_slide(tiny_bundle: Path, synthetic_slide: Path) -> None:
    predictor = LocalPredictor(Bundle.load(tiny_bundle, device="cpu"), workers=1)
    found = predictor.predict(synthetic_slide)
    predictor.close()
    grid = evidence_grid(found, (0, 0, 3584, 3584), 2)
    total = sum(float(evidence(scale, 2).astype(np.float64).sum()) for scale in found.maps)
    assert float(np.nansum(grid)) == pytest.approx(total, rel=1e-5)


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def mixed(colour: tuple[int, int, int], grey: int, opacity: float) -> list[float]:
    return [opacity * c + (1 - opacity) * grey for c in colour]


def test_red_speaks_for_blue_against_and_the_rest_is_grey(prediction: Prediction) -> None:
    # 2 x 2 cells over 448 px: for, against, half as strongly for, and one never read.
    tiles = scale_map(
        "20x", 224.0, [[0, 0], [224, 0], [0, 224]], [[3, 0, 0], [-3, 0, 0], [1.5, 0, 0]]
    )
    thumbnail = np.full((224, 224, 3), 200, dtype=np.uint8)
    picture = draw_heatmap(thumbnail, (0, 0, 448, 448), with_maps(prediction, tiles))
    assert picture.width == 2 * 224 + GAP_PX
    left, top = 224 + GAP_PX, CAPTION_PX
    for (x, y), wanted in {
        (56, 56): mixed(FOR, 200, OPACITY),
        (168, 56): mixed(AGAINST, 200, OPACITY),
        (56, 168): mixed(FOR, 200, OPACITY / 2),
        (168, 168): [200, 200, 200],
        (111, 56): mixed(FOR, 200, OPACITY),
        (112, 56): mixed(AGAINST, 200, OPACITY),
    }.items():
        assert pixel(picture, left + x, top + y) == pytest.approx(wanted, abs=2)
    # The slide beside it is as it was.
    shown = np.asarray(picture)[CAPTION_PX : CAPTION_PX + 224, :224]
    assert np.unique(shown).tolist() == [200]


def bar_of(picture: Image.Image, height: int) -> np.ndarray:
    """Colours ``[200, 3]`` of the bar under a picture that is ``height`` pixels high."""
    row = np.asarray(picture)[CAPTION_PX + height + 14].astype(int)
    coloured = np.flatnonzero(np.ptp(row, axis=1) > 30)
    start = int(coloured[0])
    return row[start : start + 200]


def test_the_bar_has_the_colours_of_the_picture(prediction: Prediction) -> None:
    thumbnail = np.full((224, 224, 3), 215, dtype=np.uint8)
    tiles = scale_map("20x", 224.0, [[0, 0], [224, 0]], [[3, 0, 0], [-3, 0, 0]])
    bar = bar_of(draw_heatmap(thumbnail, (0, 0, 448, 448), with_maps(prediction, tiles)), 224)
    assert bar[0] == pytest.approx(mixed(AGAINST, 215, OPACITY), abs=2)
    assert bar[-1] == pytest.approx(mixed(FOR, 215, OPACITY), abs=2)
    assert bar[100] == pytest.approx([215] * 3, abs=2)


def said_under(monkeypatch: pytest.MonkeyPatch, prediction: Prediction, width: int) -> list[str]:
    """All that is written into the heatmap of a slide that is ``width`` pixels wide."""
    said: list[str] = []
    write = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, *args: Any, **options: Any) -> None:
        said.append(text)
        assert self.textbbox(xy, text, options["font"], options.get("anchor"))[2] <= max(360, width)
        write(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw_heatmap(np.full((50, width // 2, 3), 200, np.uint8), BOUNDS, prediction)
    return said


@pytest.mark.parametrize("width", [100, 1500])
def test_the_legend_says_what_is_added_up_and_between_which_values(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    said = said_under(monkeypatch, prediction, width)
    # The cells hold -1, 1, 2 and once 4: 98 % of nine values lie under 4 - 2 * 0.16.
    assert {"against it", "for it", "-3.7", "0", "+3.7"} <= set(said)
    text = " ".join(said)
    assert "Evidence per tile at 20x: its share in the logit of benign" in text
    assert "10x, 20x are added up" in text and "Found: -1 to +4; 98 % lie within" in text


def test_one_magnification_is_not_added_up(
    prediction: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = scale_map("10x", 448.0, [[100, 50]], [[3, 0, 0]])
    text = " ".join(said_under(monkeypatch, with_maps(prediction, tiles), 1500))
    assert "Evidence per tile at 10x" in text and "added up" not in text
    empty = scale_map("10x", 448.0, [[100, 50]], [[0, 0, 0]])
    said = said_under(monkeypatch, with_maps(prediction, empty), 1500)
    assert said[:-1] == ["against it", "for it", "0", "No tile speaks for or against benign."]


def test_a_single_tile_of_many_is_not_lost(prediction: Prediction) -> None:
    corners = [[224 * column, 0] for column in range(200)]
    tiles = scale_map("20x", 224.0, corners, [[3, 0, 0], *[[0, 0, 0]] * 199])
    thumbnail = np.full((4, 800, 3), 200, dtype=np.uint8)
    picture = draw_heatmap(thumbnail, (0, 0, 200 * 224, 224), with_maps(prediction, tiles))
    assert pixel(picture, 800 + GAP_PX + 1, CAPTION_PX + 1) == pytest.approx(
        mixed(FOR, 200, OPACITY), abs=2
    )


def test_the_slide_under_the_colours_has_none(prediction: Prediction) -> None:
    thumbnail = np.zeros((64, 64, 3), dtype=np.uint8)
    thumbnail[:] = (205, 130, 175)
    tiles = scale_map("20x", 224.0, [[0, 0]], [[3, 0, 0]])
    picture = draw_heatmap(thumbnail, (0, 0, 448, 448), with_maps(prediction, tiles))
    assert pixel(picture, 10, CAPTION_PX + 10) == (205, 130, 175)
    red, green, blue = pixel(picture, 64 + GAP_PX + 60, CAPTION_PX + 60)
    assert red == green == blue


@pytest.mark.parametrize("contribution", [[[0.0, 0.0, 0.0]], []])
def test_a_slide_without_evidence_is_drawn_plain(
    prediction: Prediction, contribution: list[list[float]]
) -> None:
    tiles = scale_map("20x", 224.0, [[0, 0]] * len(contribution), contribution)
    thumbnail = np.full((100, 100, 3), 90, dtype=np.uint8)
    picture = draw_heatmap(thumbnail, (0, 0, 448, 448), with_maps(prediction, tiles))
    assert np.unique(np.asarray(picture)[CAPTION_PX : CAPTION_PX + 100, 112:212]).tolist() == [90]


def test_a_model_that_says_nothing_of_its_tiles_cannot_be_drawn(prediction: Prediction) -> None:
    tiles = replace(scale_map("20x", 224.0, [[0, 0]], [[3, 0, 0]]), contribution=None)
    with pytest.raises(FieldInvalid, match="leave out heatmaps"):
        draw_heatmap(np.zeros((9, 9, 3), np.uint8), (0, 0, 448, 448), with_maps(prediction, tiles))


def test_png_is_written_in_proportion_and_whole(
    prediction: Prediction, synthetic_slide: Path, tmp_path: Path
) -> None:
    target = tmp_path / "maps" / "case.png"
    tiles = scale_map("20x", 224.0, [[224, 0], [448, 0]], [[3, 0, 0], [-3, 0, 0]])
    save_heatmap(synthetic_slide, target, with_maps(prediction, tiles), max_px=400)
    assert [path.name for path in target.parent.iterdir()] == ["case.png"]
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        # 2,000 x 1,500 px in 400 x 300.
        assert picture.width == 2 * 400 + GAP_PX and picture.height > 300 + CAPTION_PX
        shown = np.asarray(picture.convert("RGB")).astype(int)
    right = shown[CAPTION_PX : CAPTION_PX + 300, 400 + GAP_PX :]
    coloured = np.ptp(right, axis=2) > 30
    rows, columns = np.nonzero(coloured)
    # The two tiles cover x 224 to 672 and y 0 to 224: a fifth of that in the picture.
    assert (rows.min(), rows.max() + 1) == pytest.approx((0, 44.8), abs=1)
    assert (columns.min(), columns.max() + 1) == pytest.approx((44.8, 134.4), abs=1)
    assert right[20, 60, 0] > right[20, 60, 2]
    assert right[20, 120, 2] > right[20, 120, 0]


def test_an_overridden_mpp_opens_the_slide_again(prediction: Prediction, tmp_path: Path) -> None:
    slide = tmp_path / "plain.svs"
    write_svs(np.full((448, 448, 3), 200, np.uint8), slide, mpp=0.5, objective_power=20)
    given = replace(prediction, mpp=0.25, mpp_source="override")
    save_heatmap(slide, tmp_path / "plain.png", given, max_px=200)
    assert (tmp_path / "plain.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_no_picture_of_a_slide_that_is_gone(prediction: Prediction, tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound):
        save_heatmap(tmp_path / "gone.svs", tmp_path / "gone.png", prediction, max_px=200)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tile_leaves_a_hole_and_not_no_heatmap(
    prediction: Prediction,
    synthetic_slide: Path,
    tmp_path: Path,
    with_zeroed: Callable[..., Path],
) -> None:
    target = tmp_path / "heatmap.png"
    save_heatmap(with_zeroed(synthetic_slide, (6, 5)), target, prediction, max_px=2000)
    with Image.open(target) as opened:
        shown = np.asarray(opened.convert("RGB"))
    hole = shown[CAPTION_PX + 1200 : CAPTION_PX + 1440, 1440:1680]
    assert (hole == LOST).all()
