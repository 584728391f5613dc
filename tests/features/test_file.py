"""The feature file: what is written is read, whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.errors import FeatureFileInvalid, FeatureFileUnreadable
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import (
    FeatureProvenance,
    is_feature_file,
    read_feature_file,
    read_provenance,
    recipe_key,
    write_feature_file,
)
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

ENCODER = EncoderInfo(
    id="mean", weights_sha256="0" * 64, dim=4, tile_px=224, mean=(1, 2, 3), std=(1, 1, 1)
)
RECIPE = TilingRecipe(scales=parse_scales("2.5x,5x"))


def bag_and_provenance() -> tuple[Bag, FeatureProvenance]:
    rng = np.random.default_rng(0)
    counts = {"2.5x": 2, "5x": 6}
    bag = Bag(
        slide_id="Gewebe 🔬",
        scales=RECIPE.scales,
        features={s: rng.normal(size=(n, 4)).astype(np.float32) for s, n in counts.items()},
        coords={s: rng.integers(0, 2**40, (n, 2)) for s, n in counts.items()},
        parent={"2.5x": np.full(2, -1), "5x": np.array([0, 0, 1, 1, -1, 0])},
        tissue={s: rng.random(n).astype(np.float32) for s, n in counts.items()},
    )
    provenance = FeatureProvenance(
        slide_id=bag.slide_id,
        slide_sha256="a" * 64,
        width=1000,
        height=800,
        mpp=0.499,
        mpp_source="metadata",
        reader="openslide",
        recipe=RECIPE,
        encoder=ENCODER,
        engine="mean-cpu-fp32",
        tiles_failed=3,
    )
    return bag, provenance


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.h5"
    write_feature_file(path, *bag_and_provenance())
    return path


def test_round_trip_to_the_bit(file):
    bag, provenance = bag_and_provenance()
    again, stored = read_feature_file(file)
    assert stored == provenance.model_copy(update={"created": stored.created})
    assert read_provenance(file) == stored
    assert again.slide_id == bag.slide_id
    assert again.scales == bag.scales
    for name in ("2.5x", "5x"):
        for part in ("features", "coords", "parent", "tissue"):
            left, right = getattr(again, part)[name], getattr(bag, part)[name]
            assert left.dtype == right.dtype
            assert (left == right).all()
    assert [p.name for p in file.parent.iterdir()] == ["x.h5"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []
    create = h5py.Group.create_dataset

    def fail_at_the_third(self, name, **kwargs):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return create(self, name, **kwargs)

    monkeypatch.setattr(h5py.Group, "create_dataset", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_feature_file(tmp_path / "x.h5", *bag_and_provenance())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(file, monkeypatch):
    old = file.read_bytes()
    monkeypatch.setattr(h5py.Group, "create_dataset", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_feature_file(file, *bag_and_provenance())
    assert file.read_bytes() == old
    assert len(list(file.parent.iterdir())) == 1


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """In a process of its own, whose files may not grow beyond 4 kB: HDF5 itself would end it."""
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from cmamil_sdk.errors import OutputUnwritable\n"
        "from cmamil_sdk.features.file import write_feature_file\n"
        "from tests.features.test_file import bag_and_provenance\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_feature_file(Path(sys.argv[1]), *bag_and_provenance())\n"
        "except OutputUnwritable as problem:\n"
        "    print(problem)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "out" / "a.h5"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "a.h5 cannot be written (File too large); free space" in run.stdout
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bag_that_makes_no_sense_is_not_written(tmp_path):
    bag, provenance = bag_and_provenance()
    broken = replace(bag, features={**bag.features, "5x": np.full((6, 4), np.nan, np.float32)})
    with pytest.raises(FeatureFileInvalid, match="NaN"):
        write_feature_file(tmp_path / "x.h5", broken, provenance)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [0, 2, "1", "abc", [1, 2], None])
def test_other_versions_are_refused(file, version):
    with h5py.File(file, "a") as store:
        del store.attrs["format_version"]
        if version is not None:
            store.attrs["format_version"] = version
    for read in (read_provenance, read_feature_file):
        with pytest.raises(FeatureFileInvalid, match="format version"):
            read(file)


def test_files_that_are_no_feature_files(tmp_path):
    paths = [tmp_path / name for name in ("missing.h5", "empty.h5", "text.h5", "bare.h5")]
    paths[1].touch()
    paths[2].write_bytes(b"slide,label\n" * 50)
    h5py.File(paths[3], "w").close()
    for path in (*paths, tmp_path):
        for read in (read_provenance, read_feature_file):
            with pytest.raises(FeatureFileInvalid):
                read(path)


def test_truncated_files_are_refused(file, tmp_path):
    data = file.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        cut = tmp_path / "cut.h5"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(FeatureFileInvalid, match=r"cut\.h5"):
            read_feature_file(cut)


def test_a_file_that_may_not_be_read_is_not_called_damaged(file, monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    for read in (is_feature_file, read_provenance, read_feature_file):
        with pytest.raises(FeatureFileUnreadable, match=r"\.h5 may not be read .*permissions"):
            read(file)


def test_what_is_not_finite_is_named_with_file_scale_and_row(file):
    with h5py.File(file, "a") as store:
        store["scales/5x/features"][2:4, 1] = np.inf
    where = rf"^{re.escape(str(file))}: Slide .*, scale 5x, row 2 \(and 1 more of 6\): "
    with pytest.raises(FeatureFileInvalid, match=where):
        read_feature_file(file)


def damage(store: h5py.File, what: str) -> None:
    group = store["scales/5x"]
    if what == "no scale":
        del store["scales/2.5x"]
    elif what == "no coords":
        del group["coords"]
    elif what == "rows":
        del group["features"]
        group["features"] = np.zeros((5, 4), np.float32)
    elif what == "nan":
        group["features"][2, 1] = np.nan
    elif what == "text":
        del group["features"]
        group["features"] = ["a", "b"]
    elif what == "group":
        del group["features"]
        group.create_group("features")
    elif what == "parent":
        group["parent"][0] = 7
    elif what == "recipe json":
        store.attrs["recipe"] = "{"
    elif what == "recipe number":
        store.attrs["recipe"] = 3
    elif what == "recipe order":
        text = store.attrs["recipe"].replace("4.0", "0.25")
        store.attrs["recipe"] = text
    elif what == "extra":
        store.attrs["pickle"] = "x"
    elif what == "hash":
        store.attrs["slide_sha256"] = "zz"


DAMAGES = ("no scale", "no coords", "rows", "nan", "text", "group", "parent")
DAMAGES_OF_ATTRIBUTES = ("recipe json", "recipe number", "recipe order", "extra", "hash")


@pytest.mark.parametrize("what", [*DAMAGES, *DAMAGES_OF_ATTRIBUTES])
def test_damaged_contents_are_refused(file, what):
    with h5py.File(file, "a") as store:
        damage(store, what)
    with pytest.raises(FeatureFileInvalid):
        read_feature_file(file)


def test_float16_features_come_back_as_float32(file):
    with h5py.File(file, "a") as store:
        half = store["scales/5x/features"][()].astype(np.float16)
        del store["scales/5x/features"]
        store["scales/5x/features"] = half
    bag, _ = read_feature_file(file)
    assert bag.features["5x"].dtype == np.float32


def test_the_recipe_key_covers_tiling_and_encoder_and_nothing_else():
    _, provenance = bag_and_provenance()
    key = provenance.recipe_key()
    assert key == recipe_key(RECIPE, ENCODER)
    assert provenance.model_copy(update={"engine": "other", "mpp": 0.25}).recipe_key() == key
    others = [
        recipe_key(RECIPE.model_copy(update={"tile_px": 256}), ENCODER),
        recipe_key(RECIPE, ENCODER.model_copy(update={"weights_sha256": "1" * 64})),
        recipe_key(RECIPE, ENCODER.model_copy(update={"mean": (0, 0, 0)})),
        recipe_key(RECIPE, ENCODER.model_copy(update={"precision": "fp16"})),
    ]
    assert len({key, *others}) == 5


def test_what_a_slide_has_not_is_not_in_its_file(file, tmp_path):
    bag, provenance = bag_and_provenance()
    masked = provenance.model_copy(update={"tissue_mask_sha256": "b" * 64})
    write_feature_file(tmp_path / "masked.h5", bag, masked)
    with h5py.File(file) as plain, h5py.File(tmp_path / "masked.h5") as other:
        assert set(other.attrs) - set(plain.attrs) == {"tissue_mask_sha256"}
    assert read_provenance(tmp_path / "masked.h5").tissue_mask_sha256 == "b" * 64
    assert read_provenance(file).tissue_mask_sha256 is None


def test_a_file_of_version_0_1_0_is_read_as_ever(file):
    # What it wrote had these attributes, and a recipe without the fields that came later.
    with h5py.File(file, "r+") as old:
        later = {"tissue_mask_sha256", "engine_reason"}
        assert set(old.attrs) == set(FeatureProvenance.model_fields) - later
        recipe = json.loads(old.attrs["recipe"])
        assert set(recipe) == {"scales", "tile_px", "scale_source", "mpp_tolerance", "tissue"}
        assert set(recipe["tissue"]) == {"method", "min_value", "min_share", "cell_um"}
    assert read_provenance(file).recipe == RECIPE
