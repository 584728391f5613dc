"""``config.json``: what a run is a run of, so that only the same run is continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cmamil_sdk.errors import OutputExists, RunInvalid
from cmamil_sdk.files import parse_document, write_json
from cmamil_sdk.runs import UNFINISHED_FIT, read_json

from .config import TrainConfig
from .run_lock import LOCK_FILE
from .split_files import splits_text, write_splits
from .splits import SplitRow

_WITHOUT_EFFECT_ON_RESULTS = {"cache_mb", "log_data"}
_TEMPORARY = ".*.tmp"  # of atomic writes that were killed


class RunRecord(BaseModel):
    """The configuration as given, and what it came to mean for these features and labels.

    ``losses`` are HMIL's recipe with all its weights, whose defaults may change while a run stands
    still; None for other models, and in runs from before it was written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    config: TrainConfig
    model: dict[str, Any]
    labels: tuple[str, ...]
    recipe_key: str
    features_sha256: str
    losses: dict[str, Any] | None = None

    @classmethod
    def read(cls, run: Path) -> RunRecord:
        """The record of a run directory.

        Raises:
            RunInvalid: missing or damaged.
        """
        path = run / "config.json"
        return parse_document(cls, read_json(path), where=path, error=RunInvalid)

    def identity(self) -> dict[str, Any]:
        """What must be equal for two runs to be the same."""
        document: dict[str, Any] = json.loads(self.model_dump_json())
        for name in _WITHOUT_EFFECT_ON_RESULTS:
            del document["config"][name]
        return document


def check_run(run: Path, config: TrainConfig) -> None:
    """Refuse a directory that cannot become or continue this run, before any feature is read.

    Raises:
        OutputExists: a file, a directory of something else, or a run of another configuration.
        RunInvalid: its config.json is damaged.
    """
    if not run.exists():
        return
    begun = (run / "config.json").exists()
    if not begun and (not run.is_dir() or set(run.iterdir()) - _leftovers(run)):
        raise OutputExists(f"{run} exists and is not a training run; name another directory.")
    if begun:
        _refuse_difference(
            run, RunRecord.read(run).config.model_dump(), config.model_dump(), "configuration"
        )


def open_run(run: Path, record: RunRecord, rows: Sequence[SplitRow]) -> bool:
    """Create the run directory or continue it; True if it is finished already.

    Raises:
        OutputExists: the directory holds a run of other features, labels or splits.
    """
    if (run / "config.json").exists():
        old = RunRecord.read(run)
        _refuse_difference(run, old.identity(), record.identity(), "input")
        _remove_leftovers(run)
        if (run / "splits.csv").exists():
            if (run / "splits.csv").read_text(encoding="utf-8") != splits_text(rows):
                raise OutputExists(
                    f"{run} was trained with other splits; name another directory, or give the "
                    "same labels and splits."
                )
            return (run / "metrics.json").exists()
    else:
        _remove_leftovers(run)
    write_json(run / "config.json", record.model_dump(mode="json"))
    write_splits(run / "splits.csv", rows)
    return False


def _remove_leftovers(run: Path) -> None:
    """Remove what a kill between two steps of writing may have left."""
    for temporary in run.rglob(_TEMPORARY):
        temporary.unlink()
    for finished in run.glob("fold_*/metrics.json"):
        (finished.parent / UNFINISHED_FIT).unlink(missing_ok=True)


def _leftovers(run: Path) -> set[Path]:
    """What a kill before the first file may have left."""
    return {run / LOCK_FILE, *run.glob(_TEMPORARY)}


def _refuse_difference(run: Path, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    others = _differences(old, new)
    if others:
        raise OutputExists(
            f"{run} holds a run of another {what} ({'; '.join(others)}); name another directory."
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs, value by value; of a mapping within, only what differs in it."""
    found = []
    for name in old | new:
        before, now = old.get(name), new.get(name)
        if name in _WITHOUT_EFFECT_ON_RESULTS or before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            found += [f"{name}.{inner}" for inner in _differences(before, now)]
        else:
            found.append(f"{name}: {before} there, {now} here")
    return found


__all__ = ["RunRecord", "check_run", "open_run"]
