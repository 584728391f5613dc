"""Opening slides: facts, pixels, and a typed error for everything that is none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from cmamil_sdk.errors import (
    FieldInvalid,
    MppUnknown,
    MppUnusable,
    SlideCorrupt,
    SlideFormatUnsupported,
    SlideNotFound,
    SlideUnreadable,
)
from cmamil_sdk.slides import SlideReader, open_slide
from cmamil_sdk.slides.cucim_process import cucim_installed
from cmamil_sdk.slides.slide_properties import _bounds

NEEDS_CUCIM = pytest.mark.skipif(not cucim_installed(), reason="cuCIM is not installed")


@pytest.fixture(params=["direct", pytest.param("cucim", marks=NEEDS_CUCIM), "openslide"])
def opened(request) -> Callable[[Path], SlideReader]:
    """Open a slide with a certain reader: each keeps the same contract."""
    return partial(open_slide, reader=request.param)


def zero_stored_tile(path: Path, number: int) -> None:
    """Overwrite one compressed tile of level 0 with zeros."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, size = page.dataoffsets[number], page.databytecounts[number]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(size))


def resolution_tiff(path: Path, x_per_cm: float, y_per_cm: float) -> Path:
    """A tiled TIFF whose mpp OpenSlide takes from its resolution tags."""
    pixels = np.full((256, 256, 3), 180, np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        compression="deflate",
        resolution=(x_per_cm, y_per_cm),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    return path


def test_facts_of_a_generated_slide(synthetic_slide):
    with open_slide(synthetic_slide) as reader:
        facts = reader.facts
    assert (facts.width, facts.height) == (2000, 1500)
    assert facts.bounds == (0, 0, 2000, 1500)
    assert [(level.width, level.height) for level in facts.levels] == [
        (2000, 1500),
        (500, 375),
        (125, 93),
    ]
    assert facts.levels[1].downsample == pytest.approx(4.0)
    assert (facts.mpp, facts.mpp_source, facts.objective_power) == (0.5, "metadata", 20.0)
    assert (facts.vendor, facts.compression, facts.reader) == ("aperio", "jpeg", "direct")
    assert (facts.slide_id, facts.warnings) == ("synthetic", ())


@pytest.mark.realdata
def test_facts_of_the_real_slides(real_data):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as reader:
        one = reader.facts
    assert (one.width, one.height, one.mpp, len(one.levels)) == (2220, 2967, 0.499, 1)
    assert (one.vendor, one.objective_power, one.compression) == ("aperio", 20.0, "jpeg")
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.pyramid.svs") as reader:
        pyramid = reader.facts
    assert len(pyramid.levels) == 3
    assert pyramid.levels[2].downsample == pytest.approx(4.002, abs=1e-3)
    assert pyramid.slide_id == "CMU-1-Small-Region.pyramid"
    with open_slide(real_data / "slides" / "camelyon-lowpower-jpeg.dcm") as reader:
        dicom = reader.facts
    assert (dicom.vendor, dicom.compression) == ("dicom", None)
    assert dicom.mpp == pytest.approx(28.97, abs=0.01)


@pytest.mark.realdata
def test_a_real_slide_without_mpp_asks_for_it(real_data):
    path = real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    with open_slide(path) as reader:
        assert (reader.facts.mpp, reader.facts.mpp_source) == (None, "unknown")
        with pytest.raises(MppUnknown, match="--mpp"):
            reader.facts.require_mpp()
    with open_slide(path, mpp=0.5) as reader:
        assert reader.facts.require_mpp() == 0.5
        assert reader.facts.mpp_source == "override"
        assert reader.facts.warnings == ()


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("broken.svs", SlideFormatUnsupported),
        ("unopenable.tiff", SlideFormatUnsupported),
    ],
)
def test_real_files_that_are_no_slides(real_data, name, error):
    with pytest.raises(error, match=name):
        open_slide(real_data / "slides" / name)


@pytest.mark.realdata
def test_real_slides_with_bad_contents(real_data):
    with open_slide(real_data / "slides" / "unreadable.svs") as reader:
        for _ in range(2):
            with pytest.raises(SlideCorrupt, match="cannot be decoded"):
                reader.read_region(0, 0, 0, 16, 16)
    with open_slide(real_data / "slides" / "boxes.tiff") as reader:
        with pytest.raises(MppUnusable, match=r"352\.778.*--mpp"):
            reader.facts.require_mpp()
        assert reader.thumbnail(100).shape == (83, 100, 3)


def test_paths_that_are_no_slide(tmp_path):
    with pytest.raises(SlideFormatUnsupported, match="directory"):
        open_slide(tmp_path)
    for name in ("missing.svs", "nul\0byte.svs", "n" * 300 + ".svs"):
        with pytest.raises(SlideNotFound):
            open_slide(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(SlideNotFound):
        open_slide(tmp_path / "pipe.svs")
    (tmp_path / "empty.svs").touch()
    with pytest.raises(SlideCorrupt, match="is empty"):
        open_slide(tmp_path / "empty.svs")


@pytest.mark.parametrize("kept", [1000, 40_000, -1])
def test_a_copy_that_is_cut_short_says_so(synthetic_slide, tmp_path, kept):
    path = tmp_path / "cut.svs"
    path.write_bytes(synthetic_slide.read_bytes()[:kept])
    with pytest.raises(SlideCorrupt, match="copy the file again"):
        open_slide(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_forbidden_file(synthetic_slide, tmp_path):
    path = tmp_path / "secret.svs"
    path.write_bytes(synthetic_slide.read_bytes())
    path.chmod(0)
    with pytest.raises(SlideUnreadable, match="permissions"):
        open_slide(path)


def test_a_permission_error_is_unreadable(synthetic_slide, monkeypatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SlideUnreadable, match="permissions"):
        open_slide(synthetic_slide)


def test_a_truncated_slide(noisy_slide, tmp_path):
    path = tmp_path / "cut.svs"
    path.write_bytes(noisy_slide.read_bytes()[:-2000])
    with pytest.raises((SlideCorrupt, SlideFormatUnsupported)):
        open_slide(path)


def test_a_name_outside_ascii(noisy_slide, tmp_path):
    path = tmp_path / "Gewebe 🔬.v2.svs"
    path.write_bytes(noisy_slide.read_bytes())
    with open_slide(path) as reader:
        assert reader.facts.slide_id == "Gewebe 🔬.v2"
        assert reader.read_region(0, 0, 0, 8, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("mpp", [0.0, -1.0, math.nan, math.inf, 0.001, 500.0])
def test_an_override_that_makes_no_sense(synthetic_slide, mpp):
    with pytest.raises(FieldInvalid, match="--mpp"):
        open_slide(synthetic_slide, mpp=mpp)


def test_an_override_wins_and_a_conflict_is_told(synthetic_slide):
    with open_slide(synthetic_slide, mpp=0.25) as reader:
        assert (reader.facts.mpp, reader.facts.mpp_source) == (0.25, "override")
        (warning,) = reader.facts.warnings
        assert "0.5" in warning
        assert "0.25" in warning
    with open_slide(synthetic_slide, mpp=0.51) as reader:
        assert reader.facts.warnings == ()


def test_pixels_that_are_not_square_or_absurd(tmp_path):
    square = resolution_tiff(tmp_path / "square.tiff", 20_000, 20_200)
    with open_slide(square) as reader:
        assert reader.facts.require_mpp() == pytest.approx(0.4975, abs=1e-4)
    for x, y, words in ((20_000, 10_000, "not square"), (28.3, 28.3, "no scanner")):
        path = resolution_tiff(tmp_path / f"{words}.tiff", x, y)
        with open_slide(path) as reader:
            assert (reader.facts.mpp, reader.facts.mpp_source) == (None, "unknown")
            with pytest.raises(MppUnusable, match=words):
                reader.facts.require_mpp()
        with open_slide(path, mpp=0.5) as reader:
            assert reader.facts.require_mpp() == 0.5


def test_level_0_pixels_are_openslides(noisy_slide, opened):
    with openslide.OpenSlide(noisy_slide) as truth, opened(noisy_slide) as reader:
        expected = np.asarray(truth.read_region((130, 77), 0, (301, 203)).convert("RGB"))
        assert (reader.read_region(0, 130, 77, 301, 203) == expected).all()


def test_coarser_levels_are_the_stored_pixels(noisy_slide, opened):
    with tifffile.TiffFile(noisy_slide) as file:
        stored = [page.asarray() for page in file.pages if page.is_tiled]
    with opened(noisy_slide) as reader:
        for level, pixels in enumerate(stored):
            got = reader.read_region(level, 3, 5, 20, 15).astype(int)
            assert np.abs(got - pixels[5:20, 3:23]).mean() < 2.0, f"level {level} is shifted"


def test_a_level_pixel_is_found_at_the_nearest_pixel_of_level_0(noisy_slide, monkeypatch):
    """Cutting off instead would read up to a whole level-0 pixel too far left."""
    with open_slide(noisy_slide, reader="openslide") as reader:
        levels = tuple(replace(lv, downsample=lv.downsample * 1.0007) for lv in reader.facts.levels)
        reader.facts = replace(reader.facts, levels=levels)
        asked = []
        real = reader._slide.read_region

        def spy(*arguments):
            asked.append(arguments[0])
            return real(*arguments)

        monkeypatch.setattr(reader._slide, "read_region", spy)
        ds = levels[1].downsample
        for x, y in ((190, 17), (100, 230), (-3, 0)):
            reader.read_region(1, x, y, 4, 4)
            assert abs(asked[-1][0] - x * ds) <= 0.5
            assert abs(asked[-1][1] - y * ds) <= 0.5
        assert int(190 * ds) != round(190 * ds), "else this test shows nothing"


def test_the_outside_is_white(noisy_slide, opened):
    with opened(noisy_slide) as reader:
        inside = reader.read_region(0, 0, 0, 20, 20)
        around = reader.read_region(0, -10, -10, 30, 30)
        beyond = reader.read_region(0, 690, 490, 40, 40)
        far = reader.read_region(1, 5000, 5000, 7, 9)
    assert (around[10:, 10:] == inside).all()
    assert (around[:10] == 255).all()
    assert (around[:, :10] == 255).all()
    assert (beyond[10:] == 255).all()
    assert (beyond[:, 10:] == 255).all()
    assert (beyond[:10, :10] < 255).any()
    assert far.shape == (9, 7, 3)
    assert (far == 255).all()


def test_a_corrupt_tile_fails_alone_and_the_reader_lives_on(noisy_slide, opened, tmp_path):
    path = tmp_path / "zeroed.svs"
    path.write_bytes(noisy_slide.read_bytes())
    zero_stored_tile(path, 2)  # x 224..336, y 0..112
    with opened(noisy_slide) as whole, opened(path) as reader:
        for _ in range(2):
            with pytest.raises(SlideCorrupt, match=r"\(230, 10\), level 0"):
                reader.read_region(0, 230, 10, 20, 20)
            for x, y in ((0, 0), (112, 0), (336, 0), (224, 112)):
                expected = whole.read_region(0, x, y, 112, 112)
                assert (reader.read_region(0, x, y, 112, 112) == expected).all()


def test_thumbnail_shows_the_bounds(noisy_slide, opened):
    with opened(noisy_slide) as reader:
        small = reader.thumbnail(70)
        assert small.shape == (50, 70, 3)
        mean = reader.read_region(0, 0, 0, 700, 500).mean(axis=(0, 1))
        assert np.abs(small.mean(axis=(0, 1)) - mean).max() < 2
        assert reader.thumbnail(5000).shape == (500, 700, 3)
        reader.facts = replace(reader.facts, bounds=(100, 200, 300, 100))
        part = reader.thumbnail(5000)
        assert (part == reader.read_region(0, 100, 200, 300, 100)).all()


def test_thumbnail_in_strips_is_the_same(noisy_slide, opened, monkeypatch):
    with opened(noisy_slide) as reader:
        whole = reader.thumbnail(90)
        monkeypatch.setattr("cmamil_sdk.slides.thumbnail._STRIP_PX", 3000)
        assert np.abs(whole.astype(int) - reader.thumbnail(90)).max() <= 1


def test_bounds_are_cut_to_the_slide():
    def bounds(x, y, w, h):
        names = ("x", "y", "width", "height")
        values = zip(names, (x, y, w, h), strict=True)
        return _bounds({f"openslide.bounds-{n}": str(v) for n, v in values}, 1000, 800)

    assert bounds(10, 20, 300, 200) == (10, 20, 300, 200)
    assert bounds(-10, -20, 300, 200) == (0, 0, 290, 180)
    assert bounds(900, 700, 300, 200) == (900, 700, 100, 100)
    assert bounds(1200, 0, 300, 200) is None
    assert bounds(10, 20, 0, 200) is None
    assert _bounds({}, 1000, 800) == (0, 0, 1000, 800)


def test_a_claimed_tile_that_no_memory_holds_is_refused(noisy_slide, tmp_path):
    path = tmp_path / "bomb.svs"
    path.write_bytes(noisy_slide.read_bytes())
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["TileLength"].overwrite(16 * 2**20)
    with pytest.raises((SlideCorrupt, SlideFormatUnsupported), match=r"bomb\.svs"):
        open_slide(path)


def test_repr_makes_the_reader_again(noisy_slide):
    shown = f"OpenSlideReader({str(noisy_slide)!r})"
    with open_slide(noisy_slide, reader="openslide") as reader:
        assert repr(reader) == shown
    with open_slide(noisy_slide) as reader:
        assert repr(reader) == f"DirectReader({shown})"
