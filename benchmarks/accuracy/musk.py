"""MUSK1 and MUSK2, the classic sets of multiple-instance learning: CMA-MIL against its peers.

Repeated stratified 10-fold cross-validation over bags; a seed is a repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

from cmamil_sdk.errors import FeatureFileInvalid
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag

from .fitting import held_out_scores, one_scale_bag, options_of, trained
from .table import Results, Row, Table, Verdict

SETTINGS: dict[str, Any] = {
    "dim": 64,
    "drop_out": 0.25,
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "accumulate": 8,
}
FOLDS = 10
SETS = ("musk1", "musk2")
OURS = "CMA-MIL"
PEERS = {
    "ABMIL": "torchmil:ABMIL",
    "CLAM": "torchmil:CLAM_SB",
    "DSMIL": "torchmil:DSMIL",
    "TransMIL": "torchmil:TransMIL",
}
_RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedTarget:
    """The mean difference to the best peer, whose 95 % interval must not lie below 0.

    Differences are paired by repeat and fold, and the interval is that of their bootstrapped mean.
    Folds share training bags, so the true interval is wider.
    """

    row: str
    peers: tuple[str, ...]
    score: str

    @property
    def rows(self) -> tuple[str, ...]:
        """The row and its peers."""
        return (self.row, *self.peers)

    def judge(self, results: Results) -> Verdict:
        """Compare with the peer of the highest mean."""
        best = max(self.peers, key=lambda peer: float(np.mean(results[peer][self.score])))
        difference = np.subtract(results[self.row][self.score], results[best][self.score])
        value, low, high = _interval(difference)
        name = (
            f"{self.row}: {self.score} above {best}, the best peer, 95 % interval "
            f"[{low:+.3f}, {high:+.3f}], reaches 0; aim above 0"
        )
        return Verdict(name, value, high >= 0.0, value > 0.0)


def read_musk(path: Path) -> list[TrainingBag]:
    """Bags of a CSV without header: bag label, bag number, features; one line an instance.

    Raises:
        FeatureFileInvalid: missing, or not such a file.
    """
    try:
        values = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError, EOFError) as problem:
        raise FeatureFileInvalid(
            f"{path}: it cannot be read as numbers of equal columns ({problem}); --data must be "
            "the folder of musk1.csv.gz and musk2.csv.gz."
        ) from problem
    if values.shape[1] < 3 or not np.isin(values[:, 0], (0, 1)).all():
        raise FeatureFileInvalid(
            f"{path}: its columns are not bag label (0 or 1), bag number and features; --data must "
            "be the folder of musk1.csv.gz and musk2.csv.gz."
        )
    return [_bag(path, values[values[:, 1] == number]) for number in np.unique(values[:, 1])]


def musk_scores(options: Mapping[str, Any], seed: int, *, data: Path) -> list[dict[str, float]]:
    """``auc`` and ``accuracy`` of each fold; the seed is also that of the folds."""
    bags = read_musk(data / f"{options['set']}.csv.gz")
    config = make_config(**(SETTINGS | options_of(options, "training")))
    labels = np.array([bag.label for bag in bags])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    found = []
    for train, test in folds.split(labels, labels):
        model = trained(config, [bags[i] for i in train], seed)
        found.append(held_out_scores(model, [bags[i] for i in test], config))
    return found


def musk_table(data: Path) -> Table:
    """The table over the sets in ``data``."""
    return Table(
        name="musk",
        title="MUSK1 and MUSK2, repeated stratified 10-fold",
        score=partial(musk_scores, data=data),
        settings={"training": SETTINGS, "folds": FOLDS, "data": data.name},
        rows={f"{name}, {model}": row for name in SETS for model, row in _rows(name).items()},
        targets=tuple(
            PairedTarget(f"{name}, {form}", tuple(f"{name}, {peer}" for peer in PEERS), "auc")
            for name in SETS
            for form in _forms()
        ),
    )


def _forms() -> dict[str, dict[str, Any]]:
    """CMA-MIL on one scale: the published ring asks itself there, the default asks nobody."""
    plain = {"attention_dim": 64, "inst_loss": "none", "cross_attention": "global"}
    alone = plain | {"cross_attention": "none"}
    return {
        OURS: plain,
        f"{OURS}, svm tile loss": plain | {"inst_loss": "svm"},
        f"{OURS}, no self-attention": alone,
        f"{OURS}, no self-attention, svm tile loss": alone | {"inst_loss": "svm"},
    }


def _rows(name: str) -> dict[str, Row]:
    peers = {
        label: {"model": model} | ({} if model.endswith("TransMIL") else {"attention_dim": 64})
        for label, model in PEERS.items()
    }
    training = _forms() | peers
    return {label: Row({"set": name, "training": options}) for label, options in training.items()}


def _bag(path: Path, lines: npt.NDArray[np.float64]) -> TrainingBag:
    labels = np.unique(lines[:, 0])
    if len(labels) > 1:
        raise FeatureFileInvalid(
            f"{path}: bag {lines[0, 1]:g} has instances of both labels; mend the file."
        )
    return one_scale_bag(f"{lines[0, 1]:g}", int(labels[0]), lines[:, 2:].astype(np.float32))


def _interval(differences: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and the bounds of its bootstrapped 95 % interval."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


__all__ = ["SETS", "PairedTarget", "musk_scores", "musk_table", "read_musk"]
