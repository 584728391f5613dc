"""The generated slide files, seen through OpenSlide and tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from cmamil_sdk.errors import FieldInvalid, OutputUnwritable
from cmamil_sdk.synthetic import write_svs

HEIGHT_PX, WIDTH_PX = 650, 1001


@pytest.fixture
def pixels() -> np.ndarray:
    """A smooth colour picture whose sizes are no multiples of anything."""
    y, x = np.mgrid[:HEIGHT_PX, :WIDTH_PX]
    waves = [np.sin(x / 40) + np.cos(y / 50), np.sin((x + y) / 60), np.cos((x - y) / 70)]
    return np.stack([150 + 40 * wave for wave in waves], axis=-1).astype(np.uint8)


def test_openslide_sees_an_aperio_slide_with_its_scale_and_levels(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "slide.svs"
    write_svs(pixels, path, mpp=0.499, objective_power=20.0)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.objective-power"]) == 20.0
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.499)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.499)
        assert slide.level_dimensions == ((1001, 650), (250, 162), (62, 40))
        assert slide.properties["openslide.level[0].tile-width"] == "240"
        assert "thumbnail" in slide.associated_images
        read = np.asarray(slide.read_region((0, 0), 0, (WIDTH_PX, HEIGHT_PX)).convert("RGB"))
        coarse = np.asarray(slide.read_region((0, 0), 1, (250, 162)).convert("RGB"))
    assert np.abs(read.astype(int) - pixels).mean() < 2.0
    averaged = pixels[:648, :1000].reshape(162, 4, 250, 4, 3).mean((1, 3))
    assert np.abs(coarse - averaged).mean() < 2.5


def test_other_levels_tiles_and_scales(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "forty.svs"
    write_svs(pixels, path, mpp=0.25, objective_power=40, tile_px=256, downsamples=(1, 2, 4))
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.objective-power"] == "40"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert slide.level_dimensions == ((1001, 650), (500, 325), (250, 162))
        assert slide.properties["openslide.level[2].tile-height"] == "256"


def test_layout_is_level_thumbnail_levels_in_jpeg(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20)
    with tifffile.TiffFile(path) as file:
        assert [bool(page.is_tiled) for page in file.pages] == [True, False, True, True]
        assert {page.compression.name for page in file.pages} == {"JPEG"}


def test_quality_changes_the_size(pixels: np.ndarray, tmp_path: Path) -> None:
    noisy = pixels ^ np.random.default_rng(0).integers(0, 32, pixels.shape, dtype=np.uint8)
    for quality in (50, 95):
        write_svs(noisy, tmp_path / f"{quality}.svs", mpp=0.5, objective_power=20, quality=quality)
    assert (tmp_path / "50.svs").stat().st_size < 0.6 * (tmp_path / "95.svs").stat().st_size


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"mpp": 0.0}, "mpp"),
        ({"objective_power": -1.0}, "objective_power"),
        ({"tile_px": 100}, "tile_px"),
        ({"quality": 0}, "quality"),
        ({"downsamples": (2, 4)}, "downsamples"),
        ({"downsamples": (1, 4, 4)}, "downsamples"),
        ({"downsamples": (1, 2048)}, "downsamples"),
    ],
)
def test_impossible_options_are_refused_and_leave_no_file(
    pixels: np.ndarray, tmp_path: Path, option: dict, word: str
) -> None:
    options = {"mpp": 0.5, "objective_power": 20.0} | option
    with pytest.raises(FieldInvalid, match=word):
        write_svs(pixels, tmp_path / "slide.svs", **options)
    assert not list(tmp_path.iterdir())


def test_pixels_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="float64"):
        write_svs(np.zeros((64, 64, 3)), tmp_path / "a.svs", mpp=0.5, objective_power=20)
    with pytest.raises(FieldInvalid, match="64, 64"):
        write_svs(np.zeros((64, 64), np.uint8), tmp_path / "a.svs", mpp=0.5, objective_power=20)


def test_nothing_stays_behind_if_the_file_cannot_be_put_in_place(
    pixels: np.ndarray, tmp_path: Path
) -> None:
    taken = tmp_path / "slide.svs"
    taken.mkdir()
    with pytest.raises(OutputUnwritable):
        write_svs(pixels, taken, mpp=0.5, objective_power=20)
    assert [path.name for path in tmp_path.iterdir()] == ["slide.svs"]
