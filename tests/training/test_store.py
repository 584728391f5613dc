from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmamil_sdk.errors import (
    ConfigInvalid,
    FeatureFileInvalid,
    LabelsInvalid,
    RecipeMismatch,
    ScaleMismatch,
)
from cmamil_sdk.features.file import read_feature_file, write_feature_file
from cmamil_sdk.training.data import Spread, bag_tensors, moments_of
from cmamil_sdk.training.labels import read_labels
from cmamil_sdk.training.layouts.folder import FeatureFolder
from cmamil_sdk.training.store import FeatureStore, resolve_cross_attention

from .conftest import Cohort, make_bag, provenance, write_cohort


def open_store(
    cohort: Cohort, scales: tuple[str, ...] | None = None, **options: Any
) -> FeatureStore:
    folder = FeatureFolder(cohort.features, scales)
    return FeatureStore.open(folder, read_labels(cohort.labels), **options)


def test_bags_come_by_slide_id_with_label_and_nested_grid(cohort: Cohort) -> None:
    store = open_store(cohort)
    bag = store.bags(["slide_05", "slide_02"])[0]
    written, _ = read_feature_file(cohort.features / "slide_05.h5")
    assert (bag.slide, bag.label) == ("slide_05", 2)
    assert torch.equal(bag.features["20x"], torch.from_numpy(written.features["20x"]))
    assert bag.index["children_10x"].tolist() == [[0, 1, 2, -1], [3, 4, 5, -1], [6, 7, 8, -1]]
    assert bag.index["ancestor_20x"].tolist() == [[n // 3] for n in range(9)]


def test_a_labelled_slide_without_features_is_named(cohort: Cohort) -> None:
    (cohort.features / "slide_03.h5").unlink()
    with pytest.raises(LabelsInvalid, match="slide_03"):
        open_store(cohort)


def test_features_without_a_label_are_named_or_left_out_on_request(cohort: Cohort) -> None:
    write_feature_file(
        cohort.features / "stray.h5", make_bag("stray", 0, seed=0), provenance("stray")
    )
    with pytest.raises(LabelsInvalid, match="stray"):
        open_store(cohort)
    assert open_store(cohort, ignore_unlabelled=True).parents_known


@pytest.mark.parametrize("other", [{"encoder": "another"}, {"scales": "5x,10x,20x"}])
def test_mixed_recipes_name_both_files(cohort: Cohort, other: dict[str, str]) -> None:
    path = cohort.features / "slide_04.h5"
    bag = make_bag("slide_04", 0, seed=0)
    write_feature_file(path, bag, provenance("slide_04", **{"encoder": "test"} | other))
    if "scales" in other:  # a file that lacks a scale of its recipe is damaged before it is other
        with pytest.raises(FeatureFileInvalid, match="slide_04"):
            open_store(cohort)
        return
    with pytest.raises(RecipeMismatch, match=r"slide_04\.h5 and .*slide_00\.h5"):
        open_store(cohort)


def test_features_of_two_scale_sources_are_not_mixed(cohort: Cohort) -> None:
    origin = provenance("slide_04")
    stored = origin.model_copy(
        update={"recipe": origin.recipe.model_copy(update={"scale_source": "stored"})}
    )
    bag = make_bag("slide_04", 0, seed=0)
    write_feature_file(cohort.features / "slide_04.h5", bag, stored)
    with pytest.raises(RecipeMismatch, match=r"slide_04\.h5 and .*slide_00\.h5"):
        open_store(cohort)


def test_nan_features_and_a_renamed_file_are_named(cohort: Cohort) -> None:
    import h5py

    with h5py.File(cohort.features / "slide_07.h5", "r+") as file:
        file["scales/20x/features"][3, 2] = np.nan
    with pytest.raises(FeatureFileInvalid, match=r"slide_07.*NaN"):
        open_store(cohort)
    (cohort.features / "slide_08.h5").replace(cohort.features / "slide_07.h5")
    write_feature_file(
        cohort.features / "slide_08.h5", make_bag("slide_08", 1, seed=0), provenance("slide_08")
    )
    with pytest.raises(FeatureFileInvalid, match=r"slide_07\.h5 holds .* 'slide_08'"):
        open_store(cohort)


def test_scales_can_be_chosen_but_not_without_the_finest(cohort: Cohort) -> None:
    store = open_store(cohort, scales=("20x",))
    assert store.scales == ("20x",)
    assert set(store.bag("slide_00").features) == {"20x"}
    assert resolve_cross_attention(None, store) == resolve_cross_attention("none", store) == "none"
    assert resolve_cross_attention("global", store) == "global"
    for wanted in ("nested", "nested-bias"):
        with pytest.raises(ConfigInvalid, match=f"{wanted}' has no effect on the one scale 20x"):
            resolve_cross_attention(wanted, store)
    with pytest.raises(ScaleMismatch, match="leave out 20x"):
        open_store(cohort, scales=("10x",))
    with pytest.raises(ScaleMismatch, match="no features at 40x"):
        open_store(cohort, scales=("20x", "40x"))


def test_cross_attention_follows_what_the_features_know(
    shared_cohort: Cohort, tmp_path: Path
) -> None:
    assert resolve_cross_attention(None, open_store(shared_cohort)) == "nested"
    without = open_store(write_cohort(tmp_path, 6, parents=False))
    assert resolve_cross_attention(None, without) == "global"
    with pytest.raises(ConfigInvalid, match="parents"):
        resolve_cross_attention("nested", without)


def test_moments_are_those_of_all_tiles_together(cohort: Cohort) -> None:
    slides = cohort.slides[3:20]
    store = open_store(cohort)
    tiles = torch.cat([store.bag(slide).features["20x"] for slide in slides]).double()
    for moments in (store.moments(slides), moments_of(store.bags(slides))):
        mean, std = moments["20x"]
        torch.testing.assert_close(mean.double(), tiles.mean(0), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(std.double(), tiles.std(0, correction=0), atol=1e-6, rtol=1e-6)


def test_a_spread_by_blocks_is_that_of_the_whole_and_needs_no_copy() -> None:
    rng = np.random.default_rng(0)
    tiles = (rng.standard_normal((30_001, 16)) * 3.0 + 500.0).astype(np.float32)
    tracemalloc.start()
    spread = Spread.of(tiles)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = tiles.astype(np.float64)
    assert spread.n == 30_001
    np.testing.assert_allclose(spread.mean, whole.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(spread.squares / spread.n, whole.var(axis=0), rtol=1e-11)
    assert peak_bytes < tiles.nbytes  # two float64 copies are four times as much


def test_moments_do_not_cancel_far_from_zero() -> None:
    bags = [make_bag(str(seed), 0, seed=seed) for seed in range(4)]
    far = [
        replace(bag, features={s: x + np.float32(1e4) for s, x in bag.features.items()})
        for bag in bags
    ]
    near_std = moments_of(bag_tensors(bag, 0) for bag in bags)["20x"][1]
    far_std = moments_of(bag_tensors(bag, 0) for bag in far)["20x"][1]
    torch.testing.assert_close(far_std, near_std, atol=1e-3, rtol=1e-3)


def test_the_cache_stays_within_its_size_and_changes_nothing(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmamil_sdk.training.store._MEGABYTE", 1024)
    one = open_store(cohort).bag("slide_00").nbytes
    store = open_store(cohort, cache_mb=3)
    for slide in [*cohort.slides, *reversed(cohort.slides)]:
        written, _ = read_feature_file(cohort.features / f"{slide}.h5")
        assert torch.equal(
            store.bag(slide).features["10x"], torch.from_numpy(written.features["10x"])
        )
        held = list(store._cache.values())
        assert sum(bag.nbytes for bag in held) == store._cached_bytes <= 3 * 1024
        assert len(held) == 3 * 1024 // one
    assert store.bag(cohort.slides[0]) is store.bag(cohort.slides[0])
    uncached = open_store(cohort, cache_mb=0)
    assert uncached.bag("slide_00") is not uncached.bag("slide_00")


def test_a_folder_without_feature_files(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileInvalid, match=r"no feature files in .*nowhere"):
        FeatureFolder(tmp_path / "nowhere")
