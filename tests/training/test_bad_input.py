"""What cannot be trained on is one clear error before training starts, and nothing is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cmamil_sdk.errors import (
    CmamilError,
    ConfigInvalid,
    EngineMissing,
    FeatureFileInvalid,
    LabelsInvalid,
    NoTissue,
    RecipeMismatch,
    ScaleMismatch,
)
from cmamil_sdk.training.config import load_config, make_config
from cmamil_sdk.training.run import train

from .conftest import LABELS, Cohort, write_labels

OPTIONS: dict[str, Any] = {"epochs": 1, "folds": 2, "dim": 8}
HIERARCHY = {"benign": "calm", "in situ": "ill", "invasive": "ill"}


def change(cohort: Cohort, arrays: dict[str, Callable[[np.ndarray], np.ndarray]]) -> None:
    """Rewrite arrays of ``slide_05.h5``, as another tool might."""
    with h5py.File(cohort.features / "slide_05.h5", "r+") as file:
        for name, edit in arrays.items():
            values = edit(file[name][()])
            del file[name]
            file[name] = values


def one_wider(values: np.ndarray) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, 1)))


def with_nan(values: np.ndarray) -> np.ndarray:
    values[4, 2] = np.nan
    return values


FINE = ("features", "coords", "parent", "tissue")
FEATURES: dict[str, tuple[dict[str, Any], type[CmamilError], str]] = {
    "another width than the other slides": (
        {"scales/10x/features": one_wider, "scales/20x/features": one_wider},
        RecipeMismatch,
        r"slide_05\.h5 and .*slide_00\.h5",
    ),
    "another width at one scale": (
        {"scales/20x/features": one_wider},
        FeatureFileInvalid,
        "slide_05, scale 20x: features are 7 wide|slide_05, scale 10x: features are 6 wide",
    ),
    "no tiles": (
        {f"scales/20x/{name}": lambda values: values[:0] for name in FINE},
        FeatureFileInvalid,
        r"slide_05, scale 20x: features have shape \(0, 6\)",
    ),
    "NaN": (
        {"scales/20x/features": with_nan},
        FeatureFileInvalid,
        r"slide_05\.h5: .*20x, row 4: .* NaN",
    ),
}


@pytest.fixture
def refused(cohort: Cohort, tmp_path: Path) -> Callable[..., None]:
    """Check that training with these options ends in this error, before anything happens."""

    def check(error: type[CmamilError], message: str, **changes: Any) -> None:
        splits = changes.pop("splits", None)

        def never(*_: object) -> None:
            raise AssertionError("training had started")

        with pytest.raises(error, match=message):
            train(
                make_config(**OPTIONS | changes),
                features=cohort.features,
                labels=cohort.labels,
                run=tmp_path / "run",
                splits=splits,
                on_progress=never,
            )
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize("what", FEATURES)
def test_features(what: str, cohort: Cohort, refused: Callable[..., None]) -> None:
    arrays, error, message = FEATURES[what]
    change(cohort, arrays)
    refused(error, message)


def rows_of(cohort: Cohort) -> list[dict[str, str]]:
    with cohort.labels.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_label_with_one_slide(cohort: Cohort, refused: Callable[..., None]) -> None:
    rows = rows_of(cohort)
    rows[0] |= {"label": "rare", "patient": "alone"}
    write_labels(cohort.labels, rows)
    refused(LabelsInvalid, "rare")


def test_labels_that_name_slide_files(cohort: Cohort, refused: Callable[..., None]) -> None:
    rows = rows_of(cohort)
    write_labels(cohort.labels, [row | {"slide": f"{row['slide']}.svs"} for row in rows])
    refused(LabelsInvalid, r"without extension: write slide_00 for slide_00\.svs\.$")
    write_labels(cohort.labels, [*rows, rows[0] | {"slide": "other.svs"}])
    refused(LabelsInvalid, r"other\.svs, but .*extract the features, or remove the lines\.$")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_fold_without_a_class(
    part: str, cohort: Cohort, refused: Callable[..., None], tmp_path: Path
) -> None:
    other = {"train": "test", "test": "train"}[part]
    rows = [
        row
        | {"fold": "0", "split": "val" if position % 6 == 0 else ("train", "test")[position % 2]}
        for position, row in enumerate(rows_of(cohort))
    ]
    for row in rows:
        row["patient"] = row["slide"]
        if row["label"] == LABELS[1] and row["split"] == part:
            row["split"] = other
    write_labels(tmp_path / "splits.csv", rows)
    write_labels(cohort.labels, [{k: r[k] for k in ("slide", "patient", "label")} for r in rows])
    refused(
        LabelsInvalid, f"fold 0.*{part}|{part}.*fold 0", splits=tmp_path / "splits.csv", folds=1
    )


@pytest.mark.parametrize(
    "hierarchy", [HIERARCHY | {"necrotic": "ill"}, {"benign": "calm", "in situ": "ill"}]
)
def test_a_hierarchy_that_names_other_labels(
    hierarchy: dict[str, str], refused: Callable[..., None]
) -> None:
    refused(ConfigInvalid, "necrotic|invasive", model="hmil", hierarchy=hierarchy)


def test_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 3\nlearning_rate: 0.1\n", encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=r"c\.yaml: learning_rate"):
        load_config(tmp_path / "c.yaml")


def test_a_device_or_precision_that_is_not_here(refused: Callable[..., None]) -> None:
    refused(EngineMissing, "cuda:7", device="cuda:7")
    refused(ConfigInvalid, "fp16-mixed", precision="fp16-mixed", device="cpu")


def test_a_slide_without_tissue(cohort: Cohort, refused: Callable[..., None]) -> None:
    arrays = {
        f"scales/{s}/{name}": lambda values: values[:0] for s in ("10x", "20x") for name in FINE
    }
    change(cohort, arrays)
    refused(NoTissue, r"slide_05\.h5 holds no tiles.*remove the file")


def test_a_sample_by_tiles_of_a_scale_that_is_left_out(
    cohort: Cohort, refused: Callable[..., None]
) -> None:
    for path in cohort.features.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            recipe = json.loads(file.attrs["recipe"]) | {"sample": {"max_tiles": 500}}
            file.attrs["recipe"] = json.dumps(recipe)
    refused(ScaleMismatch, "leave out 10x, by whose tiles", scales=("20x",))
