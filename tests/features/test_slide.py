"""One slide to one feature file, and when an old file is good enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import (
    FieldInvalid,
    MppUnusable,
    NoTissue,
    SlideCorrupt,
    SlideFormatUnsupported,
)
from cmamil_sdk.features.file import read_feature_file
from cmamil_sdk.features.slide import extract_slide, feature_path
from cmamil_sdk.files import sha256_of_file
from cmamil_sdk.synthetic import write_svs
from cmamil_sdk.tiling.recipe import TileSample, TilingRecipe, TissueRecipe, parse_scales

RECIPE = TilingRecipe(scales=parse_scales("10x,20x"))
ENCODER = EncoderInfo(
    id="mean", weights_sha256="0" * 64, dim=48, tile_px=224, mean=(0, 0, 0), std=(1, 1, 1)
)


@pytest.fixture
def extract(synthetic_slide, tmp_path, engine):
    def run(slide: Path = synthetic_slide, **changes):
        options = {"recipe": RECIPE, "encoder": ENCODER, "engine": engine, "workers": 1} | changes
        return extract_slide(slide, tmp_path / "features", **options)

    return run


def test_the_file_says_where_its_features_come_from(extract, synthetic_slide, tmp_path):
    result = extract()
    assert result.path == feature_path(tmp_path / "features", synthetic_slide)
    assert (result.tiles, result.tiles_failed, result.resumed) == ({"10x": 12, "20x": 36}, 0, False)
    bag, provenance = read_feature_file(result.path)
    assert bag.counts() == result.tiles
    assert provenance.slide_sha256 == sha256_of_file(synthetic_slide)
    assert (provenance.mpp, provenance.mpp_source) == (0.5, "metadata")
    assert (provenance.width, provenance.height) == (2000, 1500)
    assert (provenance.recipe, provenance.encoder) == (RECIPE, ENCODER)
    assert provenance.engine == "mean-cpu-fp32"
    assert provenance.reader.startswith("direct: JPEG tiles, the same as OpenSlide's at")


def assert_equal_features(one: Path, other: Path) -> None:
    (first, told), (second, retold) = read_feature_file(one), read_feature_file(other)
    assert told.recipe_key() == retold.recipe_key()
    for name in first.counts():
        for part in ("features", "coords", "tissue", "parent"):
            np.testing.assert_array_equal(getattr(first, part)[name], getattr(second, part)[name])


def test_the_reader_changes_no_feature(extract):
    direct = extract(reader="direct").path
    kept = direct.rename(direct.with_suffix(".direct"))
    asked = extract(reader="openslide")
    assert_equal_features(kept, asked.path)
    assert read_feature_file(asked.path)[1].reader == "openslide: asked for"
    assert extract(reader="direct").resumed, "a complete file stands for either reader"


@pytest.mark.realdata
@pytest.mark.parametrize("mpp", [None, 0.23, 0.41])
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "CMU-1-Small-Region.pyramid.svs"])
def test_the_reader_changes_no_feature_of_real_slides(extract, real_data, name, mpp):
    """Read at level 0 one to one, averaged two by two, and averaged by fractions of a pixel."""
    slide = real_data / "slides" / name
    direct = extract(slide, reader="direct", mpp=mpp).path
    kept = direct.rename(direct.with_suffix(".direct"))
    assert_equal_features(kept, extract(slide, reader="openslide", mpp=mpp).path)


@pytest.mark.realdata
def test_the_file_says_why_it_was_not_read_directly(extract, real_data):
    slide = real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    _, provenance = read_feature_file(extract(slide, mpp=0.5).path)
    reason = "not read directly, because level 0 is stored as aperio_jp2000_rgb, not jpeg"
    assert provenance.reader == f"openslide: {reason}"
    with pytest.raises(SlideFormatUnsupported, match="cannot be read directly"):
        extract(slide, mpp=0.5, reader="direct", resume=False)


def test_a_complete_file_is_kept(extract, engine):
    first = extract()
    tiles, written = engine.tiles, first.path.stat().st_mtime_ns
    again = extract()
    assert again.resumed
    assert again.tiles == first.tiles
    assert engine.tiles == tiles
    assert first.path.stat().st_mtime_ns == written
    assert not extract(resume=False).resumed


def drop_coords(file: h5py.File) -> None:
    del file["scales/10x/coords"]


def drop_a_row(file: h5py.File) -> None:
    features = file["scales/20x/features"][()]
    del file["scales/20x/features"]
    file["scales/20x/features"] = features[:-1]


def spoil_a_value(file: h5py.File) -> None:
    file["scales/20x/features"][3, 1] = np.nan


def spoil_a_parent(file: h5py.File) -> None:
    file["scales/20x/parent"][0] = 12


@pytest.mark.parametrize("damage", [drop_coords, drop_a_row, spoil_a_value, spoil_a_parent])
def test_a_file_that_training_would_refuse_is_made_anew(extract, damage):
    path = extract().path
    with h5py.File(path, "r+") as file:
        damage(file)
    assert not extract().resumed
    read_feature_file(path)
    assert extract().resumed


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": RECIPE.model_copy(update={"scales": parse_scales("20x")})},
        {"recipe": RECIPE.model_copy(update={"tissue": TissueRecipe(method="none")})},
        {"recipe": RECIPE.model_copy(update={"tissue": TissueRecipe(pens="exclude")})},
        {"recipe": RECIPE.model_copy(update={"sample": TileSample(max_tiles=1000)})},
        {"recipe": RECIPE.model_copy(update={"scale_source": "stored"})},
        {"encoder": ENCODER.model_copy(update={"weights_sha256": "1" * 64})},
        {"mpp": 0.25},
    ],
    ids=["scales", "tissue", "pens", "sample", "scale_source", "weights", "mpp"],
)
def test_a_file_of_another_recipe_is_not(extract, changes):
    extract()
    assert not extract(**changes).resumed


def test_a_file_made_with_an_override_does_not_stand_for_the_metadata(extract):
    extract(mpp=0.25)
    assert extract(mpp=0.25).resumed
    result = extract()
    assert not result.resumed
    assert read_feature_file(result.path)[1].mpp == 0.5


def test_a_changed_slide_of_the_same_name_is_read_again(extract, synthetic_slide, tmp_path):
    copy = tmp_path / synthetic_slide.name
    shutil.copyfile(synthetic_slide, copy)
    extract(copy)
    with copy.open("ab") as file:
        file.write(b"\0")
    assert not extract(copy).resumed


def test_a_damaged_file_is_replaced(extract):
    path = extract().path
    path.write_bytes(path.read_bytes()[:3000])
    assert not extract().resumed
    read_feature_file(path)


def test_a_slide_that_fails_leaves_no_file(extract, tmp_path, with_zeroed, textured_slide):
    everywhere = RECIPE.model_copy(update={"tissue": TissueRecipe(method="none")})
    corners = [(0, 0), (4, 0), (8, 0), (0, 4), (4, 4), (8, 4)]
    with pytest.raises(SlideCorrupt):
        extract(with_zeroed(textured_slide, *corners), recipe=everywhere)
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(SlideFormatUnsupported):
        extract(tmp_path / "text.svs")
    with pytest.raises(MppUnusable):
        extract(mpp=3.0)
    assert not (tmp_path / "features").exists()


def test_a_lost_tile_is_told(extract, with_zeroed, textured_slide):
    everywhere = RECIPE.model_copy(update={"tissue": TissueRecipe(method="none")})
    result = extract(with_zeroed(textured_slide, (5, 6)), recipe=everywhere)
    assert result.tiles_failed == 2
    assert result.tiles == {"10x": 35, "20x": 143}
    assert read_feature_file(result.path)[1].tiles_failed == 2


def test_tiles_of_another_size_than_the_encoder_takes(extract):
    with pytest.raises(FieldInvalid, match="--tile-px"):
        extract(recipe=RECIPE.model_copy(update={"tile_px": 256}))


BY_MASK = RECIPE.model_copy(update={"tissue": TissueRecipe(method="mask")})


def test_a_mask_decides_and_is_recorded(extract, synthetic_slide, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((150, 200), np.uint8)
    mask[:45, :90] = 255  # 2 x 4 tiles of 224 px at 20x, 1 x 2 at 10x
    Image.fromarray(mask).save(masks / "synthetic.png")
    first = extract(recipe=BY_MASK, tissue_masks=masks)
    assert first.tiles == {"10x": 2, "20x": 8}
    stored = read_feature_file(first.path)[1]
    assert stored.tissue_mask_sha256 == sha256_of_file(masks / "synthetic.png")
    assert extract(recipe=BY_MASK, tissue_masks=masks / "synthetic.png").resumed
    Image.fromarray(mask[::-1]).save(masks / "synthetic.png")
    assert not extract(recipe=BY_MASK, tissue_masks=masks).resumed, "another mask"
    with pytest.raises(FieldInvalid, match="--tissue-masks"):
        extract(recipe=BY_MASK, resume=False)


def test_an_empty_slide_is_an_error_or_a_file_without_tiles(extract, tmp_path, engine):
    glass = tmp_path / "glass.svs"
    write_svs(np.full((600, 600, 3), 244, np.uint8), glass, mpp=0.5, objective_power=20.0)
    with pytest.raises(NoTissue, match=r"glass\.svs"):
        extract(glass)
    result = extract(glass, allow_empty=True)
    assert result.tiles == {"10x": 0, "20x": 0}
    bag, provenance = read_feature_file(result.path)
    assert bag.is_empty
    assert bag.features["10x"].shape == (0, 48)
    assert provenance.tiles_failed == engine.tiles == 0


def test_a_sample_does_not_depend_on_workers(extract):
    recipe = RECIPE.model_copy(update={"sample": TileSample(max_tiles=10, seed=2)})
    bags = []
    for workers in (1, 3):
        result = extract(recipe=recipe, workers=workers, resume=False)
        assert result.tiles["20x"] == 10
        bag, provenance = read_feature_file(result.path)
        assert provenance.recipe.sample == TileSample(max_tiles=10, seed=2)
        bags.append(bag)
    for name in ("10x", "20x"):
        np.testing.assert_array_equal(bags[0].features[name], bags[1].features[name])
        np.testing.assert_array_equal(bags[0].coords[name], bags[1].coords[name])
