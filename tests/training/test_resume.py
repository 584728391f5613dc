"""A training that is killed goes on to the bits it would have reached."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmamil_sdk.errors import OutputExists, RunInvalid
from cmamil_sdk.models.build import build_model
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.fit import FitResult, fit
from cmamil_sdk.training.resume import what_is_done
from cmamil_sdk.training.run import train
from cmamil_sdk.training.run_lock import LOCK_FILE, sole_writer

from .conftest import Cohort
from .test_fit import bags, weights

pytestmark = pytest.mark.usefixtures("blank_pictures")

CMA = {"model": "cma-mil", "lr": 5e-3, "dim": 8}
HMIL = {
    "model": "hmil",
    "lr": 1e-3,
    "dim": 8,
    "hierarchy": {"benign": "calm", "in situ": "ill", "invasive": "ill"},
    "recipe": "paper",
    "accumulate": 4,
}
RUN = make_config(epochs=7, lr=5e-3, schedule="onecycle", folds=2, dim=8, max_tiles=6)


class _Killed(Exception):
    pass


def fit_once(
    config: TrainConfig,
    state: Path | None = None,
    *,
    stop_after: int | None = None,
    shift: int = 0,
) -> tuple[torch.Tensor, FitResult]:
    """Train on the state file; ``shift`` moves the validation labels, so that learning harms."""
    torch.manual_seed(7)
    options: dict[str, Any] = {"scales": ["10x", "20x"], "feature_dim": 6, "n_classes": 3, "dim": 8}
    if config.model == "hmil":
        options |= {"parents": [0, 1, 1], "head": "shared"}
    model = build_model(config.model, options | {"dropout": config.drop_out})

    def kill(fold: int, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        if epoch == stop_after:
            raise _Killed

    val = [replace(bag, label=(bag.label + shift) % 3) for bag in bags(6, 100)]
    result = fit(model, bags(18), val, config, seed=0, state_path=state, on_progress=kill)
    return weights(model), result  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        CMA | {"epochs": 4, "schedule": "onecycle", "accumulate": 4, "gradient_clip": 0.5},
        CMA | {"epochs": 4, "sampling": "balanced", "max_tiles": 5, "precision": "bf16-mixed"},
        CMA | {"epochs": 30, "early_stopping": True, "patience": 2, "lr": 0.3},
        HMIL | {"epochs": 4},
    ],
)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_fit_goes_on_to_equal_bits(
    options: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    config, state = make_config(**options), tmp_path / "state.ckpt"
    whole, expected = fit_once(config)
    with pytest.raises(_Killed):
        fit_once(config, state, stop_after=stop_after)
    torch.manual_seed(99)
    resumed, found = fit_once(config, state)
    assert torch.equal(resumed, whole)
    assert found.history == expected.history and len(found.history) >= stop_after
    assert found.best_epoch == expected.best_epoch
    assert found.seconds_before > 0 == expected.seconds_before


def test_a_fit_may_be_killed_again_and_again(tmp_path: Path) -> None:
    config, state = make_config(**CMA, epochs=5, schedule="cosine"), tmp_path / "state.ckpt"
    whole, expected = fit_once(config)
    for epoch in (1, 2, 4):
        with pytest.raises(_Killed):
            fit_once(config, state, stop_after=epoch)
    resumed, found = fit_once(config, state)
    assert torch.equal(resumed, whole) and found.history == expected.history


def test_the_best_epoch_may_lie_before_the_kill(tmp_path: Path) -> None:
    config, state = make_config(**CMA, epochs=6), tmp_path / "state.ckpt"
    whole, expected = fit_once(config, shift=1)
    assert expected.best_epoch < 5
    with pytest.raises(_Killed):
        fit_once(config, state, stop_after=5, shift=1)
    resumed, found = fit_once(config, state, shift=1)
    assert torch.equal(resumed, whole) and found.best_epoch == expected.best_epoch


def test_a_plateau_is_waited_for_across_a_kill(tmp_path: Path) -> None:
    """The rate falls where torch's own scheduler would let it, given the same losses."""
    config, state = make_config(**CMA, epochs=16, schedule="plateau"), tmp_path / "state.ckpt"
    whole, expected = fit_once(config, shift=1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=5)
    rates = []
    for row in expected.history:
        scheduler.step(row["val_loss"])
        rates.append(optimizer.param_groups[0]["lr"])
    assert [row["lr"] for row in expected.history] == pytest.approx(rates)
    assert rates[4] == config.lr > rates[8] > rates[15]
    for epoch in (4, 9):
        with pytest.raises(_Killed):
            fit_once(config, state, stop_after=epoch, shift=1)
    resumed, found = fit_once(config, state, shift=1)
    assert torch.equal(resumed, whole) and found.history == expected.history


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_state_is_a_clear_error(damage: bytes | None, tmp_path: Path) -> None:
    config, state = make_config(**CMA, epochs=3), tmp_path / "state.ckpt"
    with pytest.raises(_Killed):
        fit_once(config, state, stop_after=1)
    state.write_bytes(state.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(RunInvalid, match=r"state\.ckpt cannot be read .* remove it to train"):
        fit_once(config, state)


PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
from cmamil_sdk.training.config import TrainConfig
from cmamil_sdk.training.run import train

config, features, labels, run, moments = sys.argv[1:]


def train_all(on_progress):
    paths = {"features": Path(features), "labels": Path(labels), "run": Path(run)}
    train(TrainConfig.model_validate_json(config), **paths, on_progress=on_progress)


def suicide(fold, epoch, *_):
    if [fold, epoch] == json.loads(moments):
        os.kill(os.getpid(), signal.SIGKILL)


if moments.startswith("["):
    train_all(suicide)
else:
    draw = random.Random(0)
    for _ in range(int(moments)):
        child = os.fork()
        if not child:
            train_all(None)
            os._exit(0)
        time.sleep(draw.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def killed(cohort: Cohort, run: Path, moments: str) -> int:
    """Exit status of a process that trains into ``run`` and is killed at ``moments``."""
    arguments = [RUN.model_dump_json(), cohort.features, cohort.labels, run, moments]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], check=False, timeout=200
    ).returncode


def results(run: Path) -> dict[str, bytes]:
    """Every file whose bytes two equal runs share, and the metrics without their times."""
    kept = [*run.glob("fold_*/checkpoint.safetensors"), *run.glob("fold_*/history.csv")]
    kept += [run / name for name in ("config.json", "splits.csv", "predictions.csv")]
    found = {str(path.relative_to(run)): path.read_bytes() for path in kept}
    for path in run.rglob("metrics.json"):
        document = json.loads(path.read_bytes())
        for part in (document, *document.get("folds", [])):
            del part["seconds"]
        found[str(path.relative_to(run))] = json.dumps(document).encode()
    return found


def names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole_run(shared_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(RUN, features=shared_cohort.features, labels=shared_cohort.labels, run=run)
    return run


def test_kill_9_inside_a_fold(shared_cohort: Cohort, whole_run: Path, tmp_path: Path) -> None:
    """The finished fold is kept, and the next epoch is the one after the last finished."""
    run = tmp_path / "run"
    assert killed(shared_cohort, run, "[1, 3]") == -signal.SIGKILL
    assert "fold_1/unfinished.ckpt" in names(run) and "fold_0/unfinished.ckpt" not in names(run)
    assert ".lock" in names(run)  # of the dead process, whom it does not outlive
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels, "run": run}
    train(
        RUN,
        **paths,
        on_progress=lambda fold, epoch, *_: seen.append((fold, epoch)),
        on_resume=said.append,
    )
    assert said == [f"{run} goes on: 1 of 2 folds done before, fold 1 after epoch 3."]
    assert seen == [(1, epoch) for epoch in (4, 5, 6, 7)]
    assert results(run) == results(whole_run)
    assert names(run) == names(whole_run)
    train(RUN, **paths, on_resume=said.append)
    assert said[1:] == [
        f"{run} is finished already and nothing is trained; for a new run name another folder."
    ]


def test_what_is_done_of_a_run_that_was_stopped_between_two_folds(
    whole_run: Path, tmp_path: Path
) -> None:
    assert what_is_done(tmp_path / "new", [0, 1]) is None
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    (run / "metrics.json").unlink()
    assert what_is_done(run, [0, 1]) == f"{run} goes on: 2 of 2 folds done before."
    (run / "fold_1" / "metrics.json").unlink()
    assert what_is_done(run, [0, 1]) == f"{run} goes on: 1 of 2 folds done before."


def test_a_run_has_one_writer(shared_cohort: Cohort, tmp_path: Path) -> None:
    run, config = tmp_path / "run", make_config(epochs=1, folds=1, dim=8)
    paths = {"features": shared_cohort.features, "labels": shared_cohort.labels, "run": run}
    refused = []

    def train_too(*_: object) -> None:
        with pytest.raises(OutputExists) as problem:
            train(config, **paths)
        refused.append(str(problem.value))

    summary = train(config, **paths, on_progress=train_too)
    holder = f"{run} is being written by process {os.getpid()} on {socket.gethostname()};"
    assert len(refused) == 1 and holder in refused[0]
    assert ".lock" not in names(run)
    assert train(config, **paths) == summary


HOLDER = """
import sys, time
from pathlib import Path
from cmamil_sdk.training.run_lock import sole_writer

with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(OutputExists, match=f"process {other.pid} on"), sole_writer(run):
            pass
        other.kill()
    assert f"process {other.pid}" in (run / LOCK_FILE).read_text()
    with sole_writer(run):
        assert f"process {os.getpid()}" in (run / LOCK_FILE).read_text()
    assert list(run.iterdir()) == []


@pytest.mark.long
def test_kill_9_at_random_moments(shared_cohort: Cohort, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert killed(shared_cohort, run, "6") == 0
    train(RUN, features=shared_cohort.features, labels=shared_cohort.labels, run=run)
    assert results(run) == results(whole_run)
    assert names(run) == names(whole_run)
