"""A folder of features as training input: ours, other tools', and what must not be mixed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cmamil_sdk.errors import (
    ConfigInvalid,
    FeatureFileInvalid,
    FeatureFileUnreadable,
    LabelsInvalid,
    RecipeMismatch,
    ScaleMismatch,
)
from cmamil_sdk.features.file import write_feature_file
from cmamil_sdk.training.labels import LabelTable, read_labels
from cmamil_sdk.training.layouts.folder import ONE_SCALE, FeatureFolder
from cmamil_sdk.training.store import FeatureStore, resolve_cross_attention

from ..conftest import make_bag, provenance, write_labels

SLIDES = ("a", "b", "c.1")


def tiles(slide: str, n: int = 5, dim: int = 4) -> np.ndarray:
    return np.random.default_rng([ord(slide[0]), n]).standard_normal((n, dim)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> LabelTable:
    write_labels(
        tmp_path / "labels.csv",
        [{"slide_id": s, "label": "x" if s == "a" else "y"} for s in SLIDES],
    )
    return read_labels(tmp_path / "labels.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One slide as a tensor, one as an array, one as CLAM writes it, and what is left alone."""
    folder = tmp_path / "features"
    folder.mkdir()
    torch.save(torch.from_numpy(tiles("a")), folder / "a.pt")
    np.save(folder / "b.npy", tiles("b", 7))
    with h5py.File(folder / "c.1.h5", "w") as file:
        file["features"] = tiles("c")
        file["coords"] = np.zeros((5, 2), np.int64)
    (folder / "._a.npy").write_bytes(b"of a Macintosh")
    (folder / "README.txt").write_text("features\n")
    (folder / "old.npy").mkdir()
    return folder


def test_arrays_become_bags_of_one_scale_without_invented_origin(
    folder: Path, table: LabelTable
) -> None:
    store = FeatureStore.open(FeatureFolder(folder), table)
    assert store.scales == (ONE_SCALE,) and store.dim == 4
    assert store.recipe is None and store.encoder is None and not store.parents_known
    bag = store.bags(["b", "c.1"])[1]
    assert (bag.slide, bag.label, bag.index) == ("c.1", 1, {})
    np.testing.assert_array_equal(bag.features[ONE_SCALE].numpy(), tiles("c"))
    mean, std = store.moments(SLIDES)[ONE_SCALE]
    together = np.concatenate([tiles("a"), tiles("b", 7), tiles("c")])
    np.testing.assert_allclose(mean.numpy(), together.mean(0), atol=1e-6)
    np.testing.assert_allclose(std.numpy(), together.std(0), atol=1e-6)
    assert resolve_cross_attention(None, store) == "none"
    with pytest.raises(ConfigInvalid, match="one scale"):
        resolve_cross_attention("nested", store)


def test_the_one_scale_has_the_name_that_is_given(folder: Path, table: LabelTable) -> None:
    store = FeatureStore.open(FeatureFolder(folder, ("20x",)), table)
    assert store.scales == ("20x",) and set(store.bag("a").features) == {"20x"}
    with pytest.raises(ScaleMismatch, match=r"a\.pt holds tiles of one scale"):
        FeatureStore.open(FeatureFolder(folder, ("5x", "20x")), table)


def test_the_digest_follows_the_content_of_the_files(folder: Path, table: LabelTable) -> None:
    first = FeatureStore.open(FeatureFolder(folder), table).digest()
    assert FeatureStore.open(FeatureFolder(folder), table).digest() == first
    changed = tiles("b", 7)
    changed[0, 0] += 1
    np.save(folder / "b.npy", changed)
    assert FeatureStore.open(FeatureFolder(folder), table).digest() != first


def test_two_files_of_one_slide(folder: Path) -> None:
    np.save(folder / "a.npy", tiles("a"))
    with pytest.raises(FeatureFileInvalid, match=r"a\.npy and a\.pt for one slide"):
        FeatureFolder(folder)


def test_a_folder_that_may_not_be_looked_into(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FeatureFileUnreadable, match="may not be read"):
        FeatureFolder(folder)


def test_widths_that_differ_name_both_files(folder: Path, table: LabelTable) -> None:
    np.save(folder / "b.npy", tiles("b", dim=6))
    with pytest.raises(FeatureFileInvalid, match=r"b\.npy: features are 6 wide.*a\.pt 4"):
        FeatureStore.open(FeatureFolder(folder), table)


def test_ours_and_others_do_not_mix(folder: Path, table: LabelTable) -> None:
    (folder / "b.npy").unlink()
    write_feature_file(folder / "b.h5", make_bag("b", 0, seed=0), provenance("b"))
    with pytest.raises(RecipeMismatch, match=r"b\.h5 and .*a\.pt"):
        FeatureStore.open(FeatureFolder(folder), table)


def test_missing_and_unlabelled_slides_are_named(folder: Path, table: LabelTable) -> None:
    np.save(folder / "d.npy", tiles("d"))
    with pytest.raises(LabelsInvalid, match="holds d, which"):
        FeatureStore.open(FeatureFolder(folder), table)
    FeatureStore.open(FeatureFolder(folder), table, ignore_unlabelled=True)
    (folder / "a.pt").unlink()
    with pytest.raises(LabelsInvalid, match="names a, but"):
        FeatureStore.open(FeatureFolder(folder), table)
