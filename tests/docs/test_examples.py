"""The pages' Python examples run as they stand, one after another, on real artefacts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle, Manifest
from cmamil_sdk.bundle.precisions import EndToEnd, PrecisionReport
from cmamil_sdk.features.file import FeatureProvenance, read_feature_file
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.tiling.recipe import TileSample, TilingRecipe, TissueRecipe

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, synthetic_slide: Path
) -> Path:
    """A folder with ``features/slide-1.h5`` and ``bundles/demo/1``, as the pages name them."""
    folder = tmp_path_factory.mktemp("docs")
    slide = folder / "slide-1.svs"
    slide.symlink_to(synthetic_slide)
    bundle = Bundle.load(tiny_bundle)
    extract_slide(
        slide,
        folder / "features",
        recipe=bundle.manifest.recipe,
        encoder=bundle.manifest.encoder,
        engine=bundle.open_encoder(),
    )
    (folder / "bundles" / "demo").mkdir(parents=True)
    (folder / "bundles" / "demo" / "1").symlink_to(tiny_bundle)
    return folder


def run_examples(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> dict[str, Any]:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)
    assert len(blocks) >= least
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page}, example {number}", "exec"), names)
    return names


def test_feature_file_examples(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_examples("feature-file.md", workplace, monkeypatch, least=2)
    bag, _ = read_feature_file(workplace / "features" / "slide-1.h5")
    np.testing.assert_array_equal(names["features"]["20x"], bag.features["20x"])
    assert len(names["inside"]) == 4


def test_bundle_examples_agree_with_the_package(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = run_examples("bundle.md", workplace, monkeypatch, least=4)
    np.testing.assert_allclose(names["probabilities"], names["answer"].probabilities, atol=1e-6)
    bag, _ = read_feature_file(workplace / "features" / "slide-1.h5")
    for name, index in bag.index_arrays().items():
        np.testing.assert_array_equal(names["inputs"][name], index)
    total = names["outputs"]["bias"][0] + names["shares"]
    np.testing.assert_allclose(total, names["outputs"]["logits"][0], atol=1e-4)


def test_feature_file_page_names_everything_in_the_file(workplace: Path) -> None:
    page = (DOCS / "feature-file.md").read_text()
    with h5py.File(workplace / "features" / "slide-1.h5") as file:
        for name in file.attrs:
            assert f"`{name}`" in page
        assert set(file.attrs) == set(FeatureProvenance.model_fields) - {"tissue_mask_sha256"}
        assert set(file) == {"scales"}
        for group in file["scales"].values():
            assert set(group.attrs) == {"mpp"}
            types = {name: (data.dtype, data.ndim) for name, data in group.items()}
            assert types == {
                "features": (np.float32, 2),
                "coords": (np.int64, 2),
                "parent": (np.int64, 1),
                "tissue": (np.float32, 1),
            }
        recipe, encoder = json.loads(file.attrs["recipe"]), json.loads(file.attrs["encoder"])
    assert set(recipe) <= set(TilingRecipe.model_fields)
    later = ["tissue_mask_sha256", "sample", *TileSample.model_fields]
    tissue = [f"tissue.{field}" for field in TissueRecipe.model_fields]
    for name in [*recipe, *encoder, *tissue, *later]:
        assert f"`{name}" in page


def test_bundle_page_names_everything_in_the_manifest(workplace: Path) -> None:
    page = (DOCS / "bundle.md").read_text()
    fields = (*Manifest.model_fields, *PrecisionReport.model_fields, *EndToEnd.model_fields)
    for name in fields:
        assert f"`{name}`" in page
    root = workplace / "bundles" / "demo" / "1"
    for path in root.iterdir():
        assert f"`{path.name}`" in page
    with np.load(root / "golden.npz") as golden:
        for name in golden.files:
            kind = name.rpartition("/")[2].partition("_")[0]
            assert f"`{kind}" in page or f"/{kind}" in page


def test_links_between_pages_lead_somewhere() -> None:
    root = DOCS.parent
    for path in [*DOCS.glob("*.md"), *root.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
