"""What a run is trained on: features in their layout, labels, and folds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cmamil_sdk.errors import ConfigInvalid

from .config import TrainConfig
from .defaults import DEFAULT_FOLDS
from .folds import fixed_split, make_folds, with_validation
from .labels import LabelTable, read_labels
from .layouts.base import Layout
from .layouts.folder import FeatureFolder
from .layouts.tree import ScaleTrees
from .option_rules import is_set
from .split_files import read_splits
from .splits import SplitRow, first_folds, folds_without_val

Features = Path | Mapping[str, Path]
"""A folder with a file per slide, or the root of CMA-MIL's tree of each scale, coarse to fine."""


def open_input(
    features: Features, labels: Path | None, scales: tuple[str, ...] | None
) -> tuple[Layout, LabelTable]:
    """Find the features of all slides, and their labels; no feature is read yet.

    Trees have their own labels; a table gives the patients, and must agree with them.

    Raises:
        ConfigInvalid: a folder without labels.
        LabelsInvalid, FeatureFileInvalid, ScaleMismatch: either is not usable.
    """
    if isinstance(features, Path):
        if labels is None:
            raise ConfigInvalid(f"The features in {features} need a labels CSV; name one.")
        return FeatureFolder(features, scales), read_labels(labels)
    trees = ScaleTrees(features, scales)
    if labels is None:
        return trees, trees.table
    table = read_labels(labels)
    trees.check_labels(table)
    return trees, table


def plan_folds(
    config: TrainConfig, layout: Layout, table: LabelTable, splits: Path | None
) -> list[SplitRow]:
    """The folds to train: those given, else that of the table's split column, else new ones.

    Where a given fold has no val part, ``val_share`` of its training patients becomes it.

    Raises:
        ConfigInvalid: an option that these folds leave without effect.
        LabelsInvalid: the folds leak, or cannot be learned or measured.
    """
    if isinstance(layout, ScaleTrees):
        if config.ignore_unlabelled:
            raise ConfigInvalid("Trees hold their own labels; leave out ignore_unlabelled.")
        if layout.has_folds and splits is not None:
            raise ConfigInvalid(f"Trees with folds hold their own; leave out splits {splits}.")
    if isinstance(layout, ScaleTrees) and layout.has_folds:
        return _given(config, layout.rows(table), table, str(layout.place))
    if splits is not None:
        return _given(config, read_splits(splits, table), table, str(splits))
    if table.has_split:
        if config.folds not in (None, 1):
            raise ConfigInvalid(
                f"{table.path} has a split column, which makes one fold, and folds is "
                f"{config.folds}; leave out one of them."
            )
        return _given(config, fixed_split(table), table, str(table.path))
    folds = config.folds or DEFAULT_FOLDS
    if folds > 1 and is_set(config, "test_share"):
        raise ConfigInvalid(
            f"test_share has no effect on {folds} folds, each of which tests its own slides; "
            "leave it out, or set folds to 1."
        )
    return make_folds(
        table,
        folds=folds,
        val_share=config.val_share,
        test_share=config.test_share,
        seed=config.seed,
    )


def _given(
    config: TrainConfig, rows: list[SplitRow], table: LabelTable, where: str
) -> list[SplitRow]:
    """Folds that are given: the first ``folds`` if that was set, each with a val part."""
    if is_set(config, "test_share"):
        raise ConfigInvalid(f"test_share has no effect on the folds of {where}; leave it out.")
    if config.folds is not None:
        rows = first_folds(rows, config.folds, where)
    if is_set(config, "val_share") and not folds_without_val(rows):
        raise ConfigInvalid(
            f"val_share has no effect on the folds of {where}, which have a val part; leave it out."
        )
    return with_validation(rows, table, val_share=config.val_share, seed=config.seed)


__all__ = ["Features", "open_input", "plan_folds"]
