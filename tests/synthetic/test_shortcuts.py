"""In situ and invasive cannot be told apart by colour, tissue area, tile count or file size.

Each bound is checked together with its opposite: the same classifier on the same features finds a
difference that is really there (too few abnormal cells by colour; a smaller outline by area).
With n slides a side the standard error of a chance AUC is about sqrt(1 / (6 n)): 0.046 for 80,
so the bounds of 0.6 and 0.7 are more than two of them above one half.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cmamil_sdk.synthetic import SyntheticSlide, plan_cohort, render_slide, write_svs

CLASSIFIERS: dict[str, Callable[[], ClassifierMixin]] = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000)),
    "forest": lambda: RandomForestClassifier(100, random_state=0, n_jobs=1),
}
TILE_PX = 224


@dataclass(frozen=True)
class Facts:
    """Per slide: label, colour histograms ``[n, 160]``, and area, tiles and bytes ``[n, 3]``."""

    label: np.ndarray
    colours: np.ndarray
    sizes: np.ndarray

    def auc(self, feature: str, positive: str, negative: str, classifier: str) -> float:
        chosen = np.isin(self.label, (positive, negative))
        truth = self.label[chosen] == positive
        values = getattr(self, feature)[chosen]
        scores = []
        for seed in range(3):
            folds = StratifiedKFold(5, shuffle=True, random_state=seed)
            model = CLASSIFIERS[classifier]()
            p = cross_val_predict(model, values, truth, cv=folds, method="predict_proba")
            scores.append(roc_auc_score(truth, p[:, 1]))
        return float(np.mean(scores))


def measure(slides: list[SyntheticSlide], folder: Path) -> Facts:
    def facts_of(slide: SyntheticSlide) -> tuple[np.ndarray, list[float]]:
        pixels = render_slide(slide)
        path = folder / f"{slide.slide_id}.svs"
        write_svs(pixels, path, mpp=0.499, objective_power=20)
        size = path.stat().st_size
        path.unlink()
        return _colours(pixels), [*_tissue(pixels), size]

    with ThreadPoolExecutor(2) as pool:
        colours, sizes = zip(*pool.map(facts_of, slides), strict=True)
    label = np.array([slide.label for slide in slides])
    return Facts(label, np.stack(colours), np.array(sizes))


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Shares of 32 levels of each channel, and of 64 colours together, of every fourth pixel."""
    sample = pixels[::2, ::2].reshape(-1, 3)
    single = [np.bincount(channel >> 3, minlength=32) for channel in sample.T]
    red, green, blue = (sample & 0xC0).T
    joint = np.bincount((red >> 2) | (green >> 4) | (blue >> 6), minlength=64)
    return np.concatenate([*single, joint]) / len(sample)


def _tissue(pixels: np.ndarray) -> tuple[float, int]:
    """Tissue share of the slide, and 224 px tiles with at least a quarter of tissue."""
    tissue = pixels.min(axis=2) < 225
    rows, columns = (side // TILE_PX for side in tissue.shape)
    whole = tissue[: rows * TILE_PX, : columns * TILE_PX]
    share = whole.reshape(rows, TILE_PX, columns, TILE_PX).mean((1, 3))
    return float(tissue.mean()), int((share >= 0.25).sum())


def check(facts: Facts) -> None:
    for classifier in CLASSIFIERS:
        assert facts.auc("colours", "in_situ", "invasive", classifier) < 0.7
        assert facts.auc("sizes", "in_situ", "invasive", classifier) < 0.6


@pytest.mark.long
def test_no_shortcut_on_small_slides(tmp_path: Path) -> None:
    """80 slides a class at a third of the area, so that there are enough to mean it."""
    plan = [
        replace(slide, width_px=1200, height_px=1200, abnormal_cells=slide.abnormal_cells // 4)
        for slide in plan_cohort(240, seed=21, held_out=0)
        if slide.label != "benign"
    ]
    facts = measure(plan, tmp_path)
    check(facts)
    in_situ = facts.label == "in_situ"
    smaller = facts.sizes * np.where(in_situ, 1.0, 0.9)[:, None]
    planted = replace(facts, sizes=smaller)
    assert planted.auc("sizes", "in_situ", "invasive", "logistic") > 0.7
    sparse = measure(
        [replace(slide, abnormal_cells=2) for slide in plan if slide.label == "invasive"][:40],
        tmp_path,
    )
    unpaired = Facts(
        np.concatenate([facts.label[in_situ], sparse.label]),
        np.concatenate([facts.colours[in_situ], sparse.colours]),
        np.concatenate([facts.sizes[in_situ], sparse.sizes]),
    )
    assert unpaired.auc("colours", "in_situ", "invasive", "forest") > 0.75


@pytest.mark.long
def test_no_shortcut_on_slides_of_the_demo(tmp_path: Path) -> None:
    facts = measure(plan_cohort(240, seed=22), tmp_path)
    check(facts)
    assert facts.auc("colours", "benign", "in_situ", "forest") > 0.8
