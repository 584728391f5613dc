"""A tiny cohort of feature files with labels, on which a model can learn something."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, write_feature_file
from cmamil_sdk.tiling.recipe import TilingRecipe, parse_scales

LABELS = ("benign", "in situ", "invasive")


@dataclass(frozen=True)
class Cohort:
    """Folder of feature files and the labels table beside it."""

    features: Path
    labels: Path
    slides: tuple[str, ...]


def provenance(slide: str, scales: str = "10x,20x", encoder: str = "test") -> FeatureProvenance:
    return FeatureProvenance(
        slide_id=slide,
        slide_sha256="0" * 64,
        width=4000,
        height=4000,
        mpp=0.5,
        mpp_source="metadata",
        reader="openslide",
        recipe=TilingRecipe(scales=parse_scales(scales)),
        encoder=EncoderInfo(
            id=encoder,
            weights_sha256="0" * 64,
            dim=6,
            tile_px=224,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        engine="onnxruntime",
    )


def make_bag(slide: str, label: int, *, seed: int, parents: bool = True) -> Bag:
    """Three 10x tiles and nine 20x tiles; feature ``label`` is raised in most of the latter."""
    rng = np.random.default_rng(seed)
    fine = rng.standard_normal((9, 6)).astype(np.float32)
    fine[:6, label] += 4.0
    parent = np.repeat(np.arange(3), 3) if parents else np.full(9, -1)
    return Bag(
        slide_id=slide,
        scales=parse_scales("10x,20x"),
        features={"10x": rng.standard_normal((3, 6)).astype(np.float32), "20x": fine},
        coords={"10x": np.zeros((3, 2), np.int64), "20x": np.zeros((9, 2), np.int64)},
        parent={"10x": np.full(3, -1), "20x": parent},
        tissue={"10x": np.ones(3, np.float32), "20x": np.ones(9, np.float32)},
    )


def write_labels(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_cohort(root: Path, n: int, *, parents: bool = True) -> Cohort:
    """Write ``n`` slides, two of each patient, labels in turn."""
    rows = []
    for position in range(n):
        slide, label = f"slide_{position:02}", position // 2 % len(LABELS)
        bag = make_bag(slide, label, seed=position, parents=parents)
        write_feature_file(root / "features" / f"{slide}.h5", bag, provenance(slide))
        rows.append({"slide": slide, "patient": f"p{position // 2:02}", "label": LABELS[label]})
    write_labels(root / "labels.csv", rows)
    return Cohort(root / "features", root / "labels.csv", tuple(row["slide"] for row in rows))


@pytest.fixture(scope="session")
def shared_cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Thirty-six slides that no test changes."""
    return write_cohort(tmp_path_factory.mktemp("cohort"), 36)


@pytest.fixture
def cohort(shared_cohort: Cohort, tmp_path: Path) -> Cohort:
    """A copy of the shared cohort that the test may damage."""
    shutil.copytree(shared_cohort.features, tmp_path / "features")
    shutil.copy(shared_cohort.labels, tmp_path / "labels.csv")
    return Cohort(tmp_path / "features", tmp_path / "labels.csv", shared_cohort.slides)
