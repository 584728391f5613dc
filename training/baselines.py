"""What a model without attention reaches, to judge the models that have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .bootstrap import Float64, Int64
from .labels import LabelTable, read_labels
from .layouts.folder import FeatureFolder
from .metrics import macro_auc
from .split_files import read_splits
from .splits import fold_numbers, slides_of
from .store import FeatureStore


def mean_feature_auc(*, features: Path, labels: Path, splits: Path, scale: str) -> float:
    """Macro AUC of logistic regression on each slide's mean feature at one scale.

    Fitted on the train and validation slides of each fold of ``splits`` (a ``splits.csv`` or the
    directory of one, such as a run), scored on its test slides, averaged over folds.

    Raises:
        LabelsInvalid, FeatureFileInvalid, RecipeMismatch: the input cannot be used.
        ScaleMismatch: the features lack ``scale``.
    """
    table = read_labels(labels)
    rows = read_splits(splits, table)
    store = FeatureStore.open(FeatureFolder(features), table, cache_mb=0, ignore_unlabelled=True)
    means = store.mean_features(scale)
    aucs = []
    for fold in fold_numbers(rows):
        known = slides_of(rows, fold, "train") + slides_of(rows, fold, "val")
        test = slides_of(rows, fold, "test")
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(*_matrix(means, known, table))
        x, y = _matrix(means, test, table)
        aucs.append(macro_auc(model.predict_proba(x), y))
    return float(np.mean(aucs))


def _matrix(
    means: dict[str, Float64], slides: Sequence[str], table: LabelTable
) -> tuple[Float64, Int64]:
    labels = np.array([table.class_of(slide) for slide in slides], dtype=np.int64)
    return np.stack([means[slide] for slide in slides]), labels


__all__ = ["mean_feature_auc"]
