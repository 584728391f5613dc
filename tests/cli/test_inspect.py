"""``cmamil inspect`` on good slides and bad files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.synthetic import write_svs

KEYS = {
    *("slide", "sha256", "width", "height", "levels", "mpp", "mpp_source", "objective_power"),
    *("vendor", "compression", "reader", "reader_reason", "tissue_fraction", "tiles"),
}


def test_json(cmamil: Callable[..., Any], small_slide: Path) -> None:
    document = cmamil("inspect", small_slide, "--json").document
    assert set(document) >= KEYS
    assert document["slide"] == str(small_slide)
    assert document["sha256"] == hashlib.sha256(small_slide.read_bytes()).hexdigest()
    assert (document["width"], document["height"]) == (896, 896)
    assert (document["mpp"], document["mpp_source"]) == (0.5, "metadata")
    assert (document["objective_power"], document["vendor"]) == (20.0, "aperio")
    assert document["tiles"] == {"5x": 1, "10x": 4, "20x": 16}
    assert document["tissue_fraction"] > 0.9
    assert set(document["levels"][0]) == {"width", "height", "downsample"}


def test_it_shows_which_level_each_scale_is_read_from(
    cmamil: Callable[..., Any], small_slide: Path
) -> None:
    def inspect(*options: str) -> Any:
        return cmamil("inspect", small_slide, "--mpp", "0.25", "--tissue", "none", *options)

    usual = inspect("--json").document
    assert usual["read_from"] == {"5x": 0, "10x": 0, "20x": 0}
    stored = inspect("--json", "--scale-source", "stored").document
    assert [level["downsample"] for level in stored["levels"]] == [1.0, 4.0, 16.0]
    assert stored["read_from"] == {"5x": 1, "10x": 1, "20x": 0}
    assert stored["tiles"] == usual["tiles"]
    assert "5x: level 1, 10x: level 1, 20x: level 0" in inspect("--scale-source", "stored").out
    assert inspect("--scale-source", "coarsest").code == 2


def test_scales_and_mpp_change_what_is_counted(
    cmamil: Callable[..., Any], small_slide: Path
) -> None:
    # At 0.25 µm/px the slide is half as wide, and 10x is read at every second 20x pixel.
    document = cmamil(
        "inspect", small_slide, "--json", "--mpp", "0.25", "--scales", "10x,20x"
    ).document
    assert document["mpp_source"] == "override"
    assert document["tiles"] == {"10x": 1, "20x": 4}


def test_a_slide_without_mpp_is_described_and_names_the_option(
    cmamil: Callable[..., Any], real_data: Path
) -> None:
    answer = cmamil("inspect", real_data / "slides" / "boxes.tiff", "--json")
    document = answer.document
    assert answer.code == 0
    assert document["mpp"] is None
    assert document["tiles"] is None
    assert "--mpp" in " ".join(document["warnings"])


def test_table(cmamil: Callable[..., Any], small_slide: Path) -> None:
    out = cmamil("inspect", small_slide).out
    for text in ("896 x 896 px", "0.5 µm/px (metadata)", "aperio", "5x: 1, 10x: 4, 20x: 16"):
        assert text in out


def test_thumbnail_shows_slide_and_grid(
    cmamil: Callable[..., Any], synthetic_slide: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "new" / "overview.png"
    assert cmamil("inspect", synthetic_slide, "--thumbnail", picture).code == 0
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    scale = pixels.shape[1] / 2000
    assert pixels.shape[0] > 1500 * scale, "the legend lies below the slide"
    background = pixels[int(1450 * scale), int(1900 * scale)]
    assert background.min() > 235, "glass is white"
    # The middle of a 20x tile is tissue; its border, at x = 448, is drawn in another colour.
    middle = pixels[int(336 * scale), int(560 * scale)]
    np.testing.assert_allclose(middle, [205, 130, 175], atol=40)
    column = pixels[
        int(300 * scale) : int(380 * scale), round(448 * scale) - 1 : round(448 * scale) + 2
    ]
    assert column[..., 0].min() < 100


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unopenable.tiff", "SLIDE_"),
        ("broken.svs", "SLIDE_"),
        ("none.svs", "SLIDE_NOT_FOUND"),
        (".", "SLIDE_FORMAT_UNSUPPORTED"),
    ],
)
def test_bad_files(cmamil: Callable[..., Any], real_data: Path, name: str, reason: str) -> None:
    answer = cmamil("inspect", real_data / "slides" / name, "--json")
    assert answer.code == 3
    assert answer.out == ""
    assert answer.err.startswith(f"cmamil: {reason}")
    assert len(answer.err.splitlines()) == 1


def test_text_file(cmamil: Callable[..., Any], not_a_slide: Path) -> None:
    answer = cmamil("inspect", not_a_slide)
    assert (answer.code, answer.out) == (3, "")
    assert "SLIDE_FORMAT_UNSUPPORTED" in answer.err
    assert str(not_a_slide) in answer.err


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "1000"])
def test_nonsense_mpp(cmamil: Callable[..., Any], small_slide: Path, mpp: str) -> None:
    answer = cmamil("inspect", small_slide, "--mpp", mpp)
    assert answer.code == 2
    assert "FIELD_INVALID" in answer.err


@pytest.mark.parametrize("scales", ["", "7", "20x,15x", "x", "20x,20x"])
def test_nonsense_scales(cmamil: Callable[..., Any], small_slide: Path, scales: str) -> None:
    answer = cmamil("inspect", small_slide, "--scales", scales)
    assert answer.code == 2
    assert "SCALE_MISMATCH" in answer.err


def test_thumbnail_where_no_folder_can_be(
    cmamil: Callable[..., Any], small_slide: Path, not_a_slide: Path
) -> None:
    answer = cmamil("inspect", small_slide, "--thumbnail", not_a_slide / "x.png")
    assert answer.code == 2
    assert "OUTPUT_UNWRITABLE" in answer.err


def test_glass_alone_is_described_without_tiles(cmamil: Callable[..., Any], tmp_path: Path) -> None:
    slide = tmp_path / "glass.svs"
    write_svs(np.full((600, 600, 3), 244, np.uint8), slide, mpp=0.5, objective_power=20.0)
    document = cmamil("inspect", slide, "--json").document
    assert document["tiles"] is None
    assert document["warnings"]


def test_the_tissue_options_change_what_is_counted(
    cmamil: Callable[..., Any], synthetic_slide: Path, tmp_path: Path
) -> None:
    def tiles(*options: object) -> dict[str, int]:
        document = cmamil("inspect", synthetic_slide, "--json", *options).document
        found: dict[str, int] = document["tiles"]
        return found

    mask = tmp_path / "m.png"
    Image.fromarray(np.eye(1, 200 * 150, 0, dtype=bool).reshape(150, 200)).save(mask)
    Image.fromarray(np.full((150, 200), 255, np.uint8)).save(tmp_path / "synthetic.png")
    assert tiles() == {"5x": 4, "10x": 12, "20x": 36}
    assert tiles("--tissue", "none") == {"5x": 6, "10x": 20, "20x": 63}
    assert tiles("--tissue", "mask", "--tissue-masks", tmp_path)["20x"] == 63
    assert tiles("--tissue", "edge-density")["20x"] == 36
    assert tiles("--max-tiles", 5, "--seed", 1)["20x"] == 5
    assert tiles("--tile-px", 112) == {"5x": 12, "10x": 36, "20x": 144}
    assert tiles("--drop-specks-um2", 1e9) is None
    assert tiles("--pens", "exclude", "--fill-holes-um2", 1e4)["20x"] == 36
    empty = cmamil("inspect", synthetic_slide, "--tissue", "mask", "--tissue-masks", mask)
    assert "no 20x tile is tissue" in empty.out
    missing = cmamil("inspect", synthetic_slide, "--tissue", "mask", "--tissue-masks", "none.png")
    assert missing.code == 3
    assert missing.err.startswith(
        "cmamil: TISSUE_MASK_INVALID: There is no mask file or folder none.png"
    )


def test_what_cannot_be_decoded_is_said_without_a_picture_too(
    cmamil: Callable[..., Any], tmp_path: Path, with_zeroed: Callable[..., Path]
) -> None:
    """A stored tile of 240 px at 0.5 µm, which four tiles of the grid touch."""
    whole = tmp_path / "whole" / "s.svs"
    whole.parent.mkdir()
    pixels = np.random.default_rng(3).integers(90, 180, (100, 100, 3), np.uint8)
    pixels = pixels.repeat(24, 0).repeat(24, 1)
    write_svs(pixels, whole, mpp=0.5, objective_power=20.0, downsamples=(1,))
    assert cmamil("inspect", whole, "--json").document["warnings"] == []
    (said,) = cmamil("inspect", with_zeroed(whole, (2, 2)), "--json").document["warnings"]
    assert said.startswith("0.0502 mm² cannot be decoded where tissue was looked for; it counts as")
