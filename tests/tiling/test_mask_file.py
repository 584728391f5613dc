"""Tissue from mask files: where it lies, which picture formats, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.errors import FieldInvalid, TissueMaskInvalid
from cmamil_sdk.slides import open_slide
from cmamil_sdk.tiling.mask_file import mask_file
from cmamil_sdk.tiling.plan import TilePlan, make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

BY_MASK = TilingRecipe(scales=parse_scales("20x"), tissue=TissueRecipe(method="mask"))


def planned(slide: Path, mask: Path | None, recipe: TilingRecipe = BY_MASK) -> TilePlan:
    with open_slide(slide) as reader:
        return make_plan(reader, recipe, mask=mask)


def one_tile(shape: tuple[int, int] = (150, 200)) -> np.ndarray:
    """A mask of the synthetic slide (2000 x 1500) whose one white spot is tile (7, 5), on glass."""
    mask = np.zeros(shape, dtype=np.uint8)
    per_px = shape[1] / 2000
    mask[round(5 * 224 * per_px) : round(6 * 224 * per_px), :][
        :, round(7 * 224 * per_px) : round(8 * 224 * per_px)
    ] = 255
    return mask


MODES = ["L", "1", "RGB", "RGBA", "P", "I;16"]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((f"m.{suffix}", mode) for suffix in ("png", "tif") for mode in MODES),
        *(("m.png", "LA"), ("m.tif", "CMYK"), ("m.tif", "YCbCr"), ("m.tif", "F")),
    ],
)
def test_not_black_is_tissue_in_every_kind_of_picture(synthetic_slide, tmp_path, name, mode):
    spot = one_tile()
    if mode == "I;16":
        picture = Image.fromarray(spot.astype(np.uint16))
    elif mode == "P":  # by its colours, not by its indices: 0 is white here, 1 black
        picture = Image.fromarray(np.where(spot > 0, 0, 1).astype(np.uint8))
        picture.putpalette([255, 255, 255, 0, 0, 0])
    else:
        picture = Image.fromarray(spot)
        picture = (picture.convert("RGB") if mode == "YCbCr" else picture).convert(mode)
    assert picture.mode == mode
    picture.save(tmp_path / name)
    assert planned(synthetic_slide, tmp_path / name).scales[0].index.tolist() == [[7, 5]]


@pytest.mark.parametrize("shape", [(15, 20), (1500, 2000), (75, 100), (76, 100)])
def test_any_size_of_the_slides_shape(synthetic_slide, tmp_path, shape):
    Image.fromarray(one_tile(shape)).save(tmp_path / "m.png")
    assert [7, 5] in planned(synthetic_slide, tmp_path / "m.png").scales[0].index.tolist()


@pytest.mark.parametrize("shape", [(200, 150), (150, 230), (140, 200)])
def test_another_shape_is_refused(synthetic_slide, tmp_path, shape):
    Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(TissueMaskInvalid, match=f"{shape[1]} x {shape[0]}.*2000 x 1500"):
        planned(synthetic_slide, tmp_path / "m.png")


def test_files_that_are_no_masks(synthetic_slide, tmp_path):
    (tmp_path / "text.png").write_text("this is no picture")
    Image.fromarray(one_tile()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:100])
    for name in ("text.png", "cut.png", "none.png"):
        with pytest.raises(TissueMaskInvalid, match=name):
            planned(synthetic_slide, tmp_path / name)


def test_a_jpeg_is_refused_for_its_black_is_not_black(synthetic_slide, tmp_path):
    for name in ("m.jpg", "m.png"):
        Image.fromarray(one_tile()).save(tmp_path / name, format="JPEG")
        with pytest.raises(TissueMaskInvalid, match=rf"{name} cannot be read.*give a PNG or TIFF"):
            planned(synthetic_slide, tmp_path / name)


@pytest.mark.filterwarnings("error")
def test_large_masks_are_read_and_larger_ones_refused(synthetic_slide, tmp_path, monkeypatch):
    mask = Image.fromarray(one_tile())
    mask.save(tmp_path / "m.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", mask.width * mask.height - 1)
    assert planned(synthetic_slide, tmp_path / "m.png").scales[0].index.tolist() == [[7, 5]]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(TissueMaskInvalid, match="million pixels; make it smaller"):
        planned(synthetic_slide, tmp_path / "m.png")
    monkeypatch.undo()
    monkeypatch.setattr("cmamil_sdk.tiling.mask_file._MAX_MASK_PX", mask.width * mask.height - 1)
    with pytest.raises(TissueMaskInvalid, match="million pixels; make it smaller"):
        planned(synthetic_slide, tmp_path / "m.png")


def test_a_mask_is_given_if_and_only_if_the_recipe_wants_one(synthetic_slide, tmp_path):
    with pytest.raises(FieldInvalid, match="--tissue-masks"):
        planned(synthetic_slide, None)
    with pytest.raises(FieldInvalid, match="no effect"):
        planned(synthetic_slide, tmp_path / "m.png", TilingRecipe(scales=parse_scales("20x")))


def test_the_mask_of_a_slide_in_a_folder(tmp_path):
    for name in ("a.png", "b.png", "b.tif", "d.TIF"):
        (tmp_path / name).touch()
    assert mask_file(tmp_path, "d") == tmp_path / "d.TIF"
    assert mask_file(tmp_path, "a") == tmp_path / "a.png"
    assert mask_file(tmp_path / "a.png", "whatever") == tmp_path / "a.png"
    with pytest.raises(TissueMaskInvalid, match=r"b\.png, b\.tif"):
        mask_file(tmp_path, "b")
    with pytest.raises(TissueMaskInvalid, match="no mask for slide c"):
        mask_file(tmp_path, "c")
    with pytest.raises(TissueMaskInvalid, match=r"no mask file or folder .*none\.png"):
        mask_file(tmp_path / "none.png", "a")
