"""Folders of tiles to arrays: rows in order, what is torn named, what is there kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.errors import (
    FieldInvalid,
    NonFiniteOutput,
    NoTissue,
    SlideCorrupt,
    SlideIdDuplicate,
    SlideNotFound,
)
from cmamil_sdk.patches.extract import PatchProvenance, extract_folder
from cmamil_sdk.patches.manifest import PatchManifest, PatchRecipe, PatchTile, write_manifest
from cmamil_sdk.patches.tree import SlideFolder, find_slides, list_tiles
from cmamil_sdk.tiling.recipe import Scale

PX = 16
ENCODER = EncoderInfo(
    id="grey", weights_sha256="0" * 64, dim=2, tile_px=PX, mean=(0,) * 3, std=(1,) * 3
)


class GreyEngine:
    """Features are a tile's mean and its number of tiles per call; counts its calls."""

    info = EngineInfo("test", "cpu", "fp32", "0", "")

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.calls = 0

    def infer(self, inputs: Any) -> dict[str, Any]:
        self.calls += 1
        means = inputs["tiles"].mean(axis=(1, 2, 3)).astype(np.float32)
        return {"features": np.stack([means, means * 0 + self.value], axis=1)}

    def close(self) -> None: ...


def write_tiles(folder: Path, places: list[tuple[int, int]], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for column, row in places:
        grey = np.full((PX, PX, 3), 10 * row + column, np.uint8)
        Image.fromarray(grey).save(folder / f"{column}_{row}{suffix}")


PLACES = [(10, 0), (2, 0), (0, 2), (1, 10), (0, 1)]
IN_ORDER = [(2, 0), (10, 0), (0, 1), (0, 2), (1, 10)]


@pytest.mark.parametrize(("batch_tiles", "workers"), [(1, 1), (2, 3), (32, 2)])
def test_rows_are_by_row_then_column(tmp_path: Path, batch_tiles: int, workers: int) -> None:
    write_tiles(tmp_path / "in" / "a" / "s.1", PLACES)
    (slide,) = find_slides(tmp_path / "in")
    seen: list[tuple[int, int]] = []
    done = extract_folder(
        slide,
        tmp_path / "out",
        encoder=ENCODER,
        engine=GreyEngine(),
        batch_tiles=batch_tiles,
        workers=workers,
        on_progress=lambda *a: seen.append(a),
    )
    assert done.path == tmp_path / "out" / "a" / "s.1.npy"
    features = np.load(done.path)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features[:, 0], [10 * r + c for c, r in IN_ORDER])
    assert seen[-1] == (5, 5)
    beside = PatchProvenance.model_validate_json((tmp_path / "out/a/s.1.json").read_bytes())
    assert list(beside.col_row) == IN_ORDER
    assert (beside.slide_id, beside.label, beside.x_y, beside.scale) == ("s.1", "a", None, None)
    assert beside.encoder == ENCODER


def manifest(scale: Scale) -> PatchManifest:
    recipe = PatchRecipe(scale=scale, tile_px=PX, overlap_px=0, threshold=15, quality=70)
    return PatchManifest(
        slide_id="s",
        slide_sha256="0" * 64,
        mpp=0.25,
        mpp_source="metadata",
        recipe=recipe,
        size_level0=32,
        columns=11,
        rows=11,
        kept=5,
    )


def test_coordinates_and_scale_come_from_the_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a" / "s"
    write_tiles(folder, PLACES)
    tiles = [PatchTile(col=c, row=r, x=32 * c, y=32 * r, score=20) for c, r in PLACES]
    write_manifest(folder, manifest(Scale(name="20x", mpp=0.5)), tiles)
    (slide,) = find_slides(tmp_path / "in")
    made_for = ENCODER.model_copy(update={"mpp": 1.0})
    arguments = {"engine": GreyEngine(), "accept_mpp": True}
    done = extract_folder(slide, tmp_path / "out", encoder=made_for, **arguments)
    beside = PatchProvenance.model_validate_json(done.path.with_suffix(".json").read_bytes())
    assert beside.x_y == tuple((32 * c, 32 * r) for c, r in IN_ORDER)
    assert beside.scale == Scale(name="20x", mpp=0.5)
    with pytest.raises(FieldInvalid, match="--accept-mpp"):
        extract_folder(slide, tmp_path / "o", encoder=made_for, engine=GreyEngine())
    write_tiles(folder, [(7, 7)])
    with pytest.raises(SlideCorrupt, match="does not name tile 7_7"):
        list_tiles(slide)
    (folder / "tiles.json").write_text("{")
    with pytest.raises(SlideCorrupt, match=r"tiles\.json is damaged"):
        list_tiles(slide)


def test_what_is_there_is_kept_until_tiles_or_encoder_change(tmp_path: Path) -> None:
    write_tiles(tmp_path / "in" / "a" / "s", PLACES)
    (slide,) = find_slides(tmp_path / "in")
    engine = GreyEngine()

    def again(encoder: EncoderInfo = ENCODER, **options: Any) -> bool:
        return extract_folder(
            slide, tmp_path / "out", encoder=encoder, engine=engine, **options
        ).resumed

    assert not again()
    assert again()
    assert not again(resume=False)
    assert not again(ENCODER.model_copy(update={"weights_sha256": "1" * 64}))
    assert not again()
    Image.new("RGB", (PX, PX), (9, 9, 9)).save(slide.path / "0_1.png")
    assert not again()
    assert again()
    np.save(tmp_path / "out" / "a" / "s.npy", np.zeros((5, 2), np.float32))
    assert not again()
    (tmp_path / "out" / "a" / "s.json").write_text("{")
    assert not again()
    assert engine.calls == 7


def test_the_layouts_that_are_read(tmp_path: Path) -> None:
    write_tiles(tmp_path / "classes" / "b" / "s2", [(0, 0)], ".jpeg")
    write_tiles(tmp_path / "classes" / "a" / "s1", [(0, 0)], ".jpg")
    write_tiles(tmp_path / "classes" / ".s.7.tmp", [(0, 0)])
    write_tiles(tmp_path / "flat" / "s1", [(0, 0)])
    write_tiles(tmp_path / "one", [(0, 0)])
    classes, flat, one = (tmp_path / name for name in ("classes", "flat", "one"))
    assert find_slides(classes) == [
        SlideFolder(classes / "a" / "s1", "s1", "a"),
        SlideFolder(classes / "b" / "s2", "s2", "b"),
    ]
    assert find_slides(flat) == [SlideFolder(flat / "s1", "s1", None)]
    assert find_slides(one) == [SlideFolder(one, "one", None)]
    done = extract_folder(
        find_slides(flat)[0], tmp_path / "out", encoder=ENCODER, engine=GreyEngine()
    )
    assert done.path == tmp_path / "out" / "s1.npy"


def test_trees_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound, match="no folder"):
        find_slides(tmp_path / "missing")
    with pytest.raises(SlideNotFound, match="no tiles"):
        find_slides(tmp_path)
    write_tiles(tmp_path / "a" / "s", [(0, 0)])
    write_tiles(tmp_path / "b" / "s", [(0, 0)])
    with pytest.raises(SlideIdDuplicate, match="'s'"):
        find_slides(tmp_path)
    write_tiles(tmp_path / "c", [(0, 0)])
    with pytest.raises(SlideNotFound, match="in folders of classes, or none"):
        find_slides(tmp_path)


def spoil_name(folder: Path) -> None:
    (folder / "0_0.png").rename(folder / "tile-0.png")


def spoil_twice(folder: Path) -> None:
    write_tiles(folder, [(0, 0)], ".jpg")


def spoil_pixels(folder: Path) -> None:
    (folder / "1_0.png").write_bytes((folder / "0_0.png").read_bytes()[:45])


def spoil_jpeg(folder: Path) -> None:
    """Zeroes in the middle of the scan: Pillow shows a picture all the same."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1_0.jpeg", quality=90)
    data = bytearray((folder / "1_0.jpeg").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    (folder / "1_0.jpeg").write_bytes(data)


def spoil_header(folder: Path) -> None:
    """A bomb: 65,000 pixels square of one colour would take 12 GB."""
    Image.new("RGB", (PX, PX)).save(folder / "1_0.jpeg")
    data = bytearray((folder / "1_0.jpeg").read_bytes())
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = (65_000).to_bytes(2, "big") * 2
    (folder / "1_0.jpeg").write_bytes(data)


def spoil_shape(folder: Path) -> None:
    Image.new("RGB", (PX, PX + 1)).save(folder / "1_0.png")


def spoil_size(folder: Path) -> None:
    Image.new("RGB", (PX + 1, PX + 1)).save(folder / "1_0.png")


def spoil_all(folder: Path) -> None:
    (folder / "0_0.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoil_name, SlideCorrupt, r"tile-0\.png is not named <col>_<row>"),
        (spoil_twice, SlideCorrupt, "are one tile"),
        (spoil_pixels, SlideCorrupt, r"1_0\.png cannot be decoded"),
        (spoil_jpeg, SlideCorrupt, r"1_0\.jpeg cannot be decoded \(Corrupt JPEG data"),
        (spoil_header, SlideCorrupt, r"1_0\.jpeg cannot be decoded \(65000 x 65000 px"),
        (spoil_shape, SlideCorrupt, "16 x 17 px"),
        (spoil_size, SlideCorrupt, r"1_0\.png has 17 px, .* tiles of 16 px"),
        (spoil_all, NoTissue, "holds no tile"),
    ],
)
def test_a_bad_folder_is_named_and_nothing_written(
    tmp_path: Path, spoil: Any, error: type[Exception], words: str
) -> None:
    folder = tmp_path / "in" / "a" / "s"
    write_tiles(folder, [(0, 0)])
    (slide,) = find_slides(tmp_path / "in")
    spoil(folder)
    with pytest.raises(error, match=words):
        extract_folder(slide, tmp_path / "out", encoder=ENCODER, engine=GreyEngine())
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_name_no_document_can_hold_is_refused(tmp_path: Path) -> None:
    write_tiles(tmp_path / "in" / "a" / "s\udcff", [(0, 0)])
    (slide,) = find_slides(tmp_path / "in")
    with pytest.raises(SlideCorrupt, match="no name in UTF-8; rename the folder"):
        extract_folder(slide, tmp_path / "out", encoder=ENCODER, engine=GreyEngine())
    assert not (tmp_path / "out").exists()


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    write_tiles(tmp_path / "in" / "a" / "s", [(0, 0)])
    (slide,) = find_slides(tmp_path / "in")
    with pytest.raises(NonFiniteOutput, match="choose another encoder"):
        extract_folder(slide, tmp_path / "out", encoder=ENCODER, engine=GreyEngine(float("nan")))
    assert not (tmp_path / "out").exists()
