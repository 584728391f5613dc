"""CMA-MIL's tree: joined by slide id, whatever the order of files, and refused where it is torn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.errors import FeatureFileInvalid, LabelsInvalid, ScaleMismatch
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.layouts.tree import ScaleTrees
from cmamil_sdk.training.run import train
from cmamil_sdk.training.splits import slides_of
from cmamil_sdk.training.store import FeatureStore, resolve_cross_attention

from .trees import CLASSES, FOLDS, TILES, features_of, write_tree

pytestmark = pytest.mark.usefixtures("blank_pictures")


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    return write_tree(tmp_path)


def test_labels_and_folds_come_from_the_folders(roots: dict[str, Path]) -> None:
    trees = ScaleTrees(roots)
    table = trees.table
    assert table.labels == CLASSES
    assert {row.slide: row.label for row in table.rows} == {
        f"{label}_{n}": label for label in CLASSES for n in range(4)
    }
    assert all(row.patient == row.slide for row in table.rows)
    assert sorted({row.fold for row in trees.rows(table)}) == [1, 2]
    for fold, parts in FOLDS.items():
        for part, numbers in parts.items():
            expected = {f"{label}_{n}" for label in CLASSES for n in numbers}
            assert set(slides_of(trees.rows(table), fold, part)) == expected


def test_each_slide_has_its_own_features_at_every_scale(roots: dict[str, Path]) -> None:
    trees = ScaleTrees(roots)
    store = FeatureStore.open(trees, trees.table)
    assert store.scales == ("5x", "20x") and store.recipe is None
    for slide in store.table.by_slide:
        bag = store.bag(slide)
        for scale in roots:
            np.testing.assert_array_equal(bag.features[scale].numpy(), features_of(slide, scale))
    assert resolve_cross_attention(None, store) == "global"


def test_a_tree_trains_on_some_of_its_tiles(roots: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(max_tiles=3, epochs=1, dim=8, k_sample=1)
    run = tmp_path / "run"
    assert train(config, features=roots, run=run)["folds"]
    assert (run / "fold_2" / "checkpoint.safetensors").exists()


def test_scales_can_be_chosen_among_the_roots(roots: dict[str, Path]) -> None:
    trees = ScaleTrees(roots, ("5x",))
    assert FeatureStore.open(trees, trees.table).scales == ("5x",)
    with pytest.raises(ScaleMismatch, match="no data root for scale 10x"):
        ScaleTrees(roots, ("5x", "10x"))


def test_a_fold_may_be_called_fold(roots: dict[str, Path]) -> None:
    for root in roots.values():
        (root / "2").rename(root / "fold_2")
    trees = ScaleTrees(roots)
    assert sorted({row.fold for row in trees.rows(trees.table)}) == [1, 2]


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


Damage = Callable[[Path], object]
DAMAGES: list[tuple[str, type[Exception], str, Damage]] = [
    (
        "missing at the finer scale",
        LabelsInvalid,
        r"'calm_2' of fold 1 is there at 5x .* missing at 20x",
        lambda fine: (fine / "1/train/calm/calm_2.npy").unlink(),
    ),
    (
        "missing at the coarser scale",
        LabelsInvalid,
        r"'calm_9' of fold 2 is there at 20x .* missing at 5x",
        lambda fine: copy(fine / "1/train/calm/calm_2.npy", fine / "2/train/calm/calm_9.npy"),
    ),
    (
        "another class",
        LabelsInvalid,
        r"'calm_2' of fold 1 is train/calm at 5x and train/wild at 20x",
        lambda fine: move(fine / "1/train/calm/calm_2.npy", fine / "1/train/wild/calm_2.npy"),
    ),
    (
        "another part",
        LabelsInvalid,
        r"'calm_2' of fold 1 is train/calm at 5x and val/calm at 20x",
        lambda fine: move(fine / "1/train/calm/calm_2.npy", fine / "1/val/calm/calm_2.npy"),
    ),
    (
        "doubled in a fold",
        LabelsInvalid,
        r"train/wild/calm_2.npy and .*train/calm/calm_2.npy are one slide in one fold",
        lambda fine: copy(fine / "1/train/calm/calm_2.npy", fine / "1/train/wild/calm_2.npy"),
    ),
    (
        "in train and in test",
        LabelsInvalid,
        r"are one slide in one fold",
        lambda fine: copy(fine / "1/train/calm/calm_2.npy", fine / "1/test/calm/calm_2.npy"),
    ),
    (
        "copies that differ between folds",
        FeatureFileInvalid,
        r"calm_2\.npy are one slide with different features",
        lambda fine: np.save(fine / "2/test/calm/calm_2.npy", features_of("calm_3", "20x")),
    ),
    (
        "an unknown part",
        FeatureFileInvalid,
        r"1/valid is no part of a fold",
        lambda fine: (fine / "1/val").rename(fine / "1/valid"),
    ),
    (
        "no fold level",
        FeatureFileInvalid,
        r"extra is no fold",
        lambda fine: (fine / "extra").mkdir(),
    ),
    (
        "one fold twice",
        FeatureFileInvalid,
        r"are both fold 1",
        lambda fine: (fine / "fold_1").mkdir(),
    ),
    (
        "two suffixes",
        FeatureFileInvalid,
        r"calm_2\.npy and calm_2\.pt for one slide",
        lambda fine: copy(fine / "1/train/calm/calm_2.npy", fine / "1/train/calm/calm_2.pt"),
    ),
]


@pytest.mark.parametrize(
    ("error", "message", "damage"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
def test_torn_trees_are_refused_by_name(
    roots: dict[str, Path], error: type[Exception], message: str, damage: Damage
) -> None:
    damage(roots["20x"])
    with pytest.raises(error, match=message):
        ScaleTrees(roots)


def test_another_class_in_another_fold(roots: dict[str, Path]) -> None:
    for root in roots.values():
        move(root / "2/test/calm/calm_2.npy", root / "2/test/wild/calm_2.npy")
    with pytest.raises(LabelsInvalid, match=r"'calm_2' is calm in one fold .* wild in fold 2"):
        ScaleTrees(roots)


def test_a_tree_of_pickles_holds_no_features(tmp_path: Path) -> None:
    place = tmp_path / "1" / "train" / "calm"
    place.mkdir(parents=True)
    (place / "a.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(FeatureFileInvalid, match="pickles are not"):
        ScaleTrees({"5x": tmp_path})


def test_scales_of_different_width_are_named(roots: dict[str, Path]) -> None:
    for fold, part in (("1", "train"), ("2", "test")):
        np.save(roots["20x"] / fold / part / "calm" / "calm_2.npy", np.ones((3, 5), np.float32))
    trees = ScaleTrees(roots)
    with pytest.raises(FeatureFileInvalid, match=r"calm_2\.npy: .* 4 at 5x, 5 at 20x wide"):
        FeatureStore.open(trees, trees.table)


def write_classes(folder: Path) -> dict[str, Path]:
    """Roots by scale of trees without folds, as feature extraction leaves them."""
    roots = {scale: folder / f"patches_{scale}" for scale in TILES}
    for scale, root in roots.items():
        for label in CLASSES:
            (root / label).mkdir(parents=True)
            for n in range(4):
                slide = f"{label}_{n}"
                np.save(root / label / f"{slide}.npy", features_of(slide, scale))
                (root / label / f"{slide}.json").write_text("{}")
        np.save(root / "dataset_index.npy", np.array([["a", "0"]]))
    return roots


def test_a_tree_without_folds_has_labels_alone(tmp_path: Path) -> None:
    trees = ScaleTrees(write_classes(tmp_path))
    assert not trees.has_folds
    assert {row.slide: row.label for row in trees.table.rows} == {
        f"{label}_{n}": label for label in CLASSES for n in range(4)
    }
    read = trees.read("wild_2").features
    for scale in TILES:
        np.testing.assert_array_equal(read[scale], features_of("wild_2", scale))


def test_in_a_tree_without_folds_scales_are_joined_by_name(tmp_path: Path) -> None:
    roots = write_classes(tmp_path)
    (roots["20x"] / "calm" / "calm_1.npy").rename(roots["20x"] / "wild" / "calm_1.npy")
    with pytest.raises(LabelsInvalid, match=r"Slide 'calm_1' is calm at 5x and wild at 20x"):
        ScaleTrees(roots)
    (roots["20x"] / "wild" / "calm_1.npy").unlink()
    with pytest.raises(LabelsInvalid, match=r"Slide 'calm_1' is there at 5x .* missing at 20x"):
        ScaleTrees(roots)


def test_a_stray_file_beside_the_parts_makes_no_tree_without_folds(tmp_path: Path) -> None:
    roots = write_tree(tmp_path)
    np.save(roots["5x"] / "1" / "stray.npy", features_of("stray", "5x"))
    trees = ScaleTrees(roots)
    assert trees.has_folds and "stray" not in trees.slides
