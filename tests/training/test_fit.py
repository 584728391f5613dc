from __future__ import annotations

import math
import random
import signal
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from cmamil_sdk.errors import ConfigInvalid, EngineMissing, NonFiniteOutput
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.data import TrainingBag, bag_tensors
from cmamil_sdk.training.fit import FitResult, fit, predict_logits
from cmamil_sdk.training.keeper import selection_rank
from cmamil_sdk.training.module import MILModule

from .conftest import make_bag


def bags(n: int, first_seed: int = 0) -> list[TrainingBag]:
    return [bag_tensors(make_bag(f"s{i}", i % 3, seed=first_seed + i), i % 3) for i in range(n)]


def train(
    config: TrainConfig, *, seed: int = 0, n_val: int = 6, **options: Any
) -> tuple[CMAMIL, FitResult]:
    torch.manual_seed(7)
    model = CMAMIL(("10x", "20x"), 6, 3, dim=16, dropout=config.drop_out, pooling=config.pooling)
    result = fit(model, bags(18), bags(n_val, 100), config, seed=seed, **options)
    return model, result


def weights(model: CMAMIL) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


QUICK = {"epochs": 2, "lr": 1e-3}


def test_a_model_learns_what_there_is_to_learn() -> None:
    model, result = train(make_config(epochs=20, lr=5e-3, schedule="onecycle"))
    unseen = bags(60, 500)
    answers = predict_logits(model, unseen, TrainConfig()).argmax(axis=1)
    assert np.mean(answers == [bag.label for bag in unseen]) > 0.9
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]


def test_two_runs_are_equal_to_the_bit_and_seeds_differ() -> None:
    config = make_config(epochs=3, lr=1e-3, schedule="onecycle", gradient_clip=1.0)
    (first, one), (second, two) = train(config), train(config)
    assert torch.equal(weights(first), weights(second))
    assert one == two
    assert not torch.equal(weights(first), weights(train(config, seed=1)[0]))


@pytest.mark.parametrize(
    "change",
    [
        {"bag_loss": "svm"},
        {"inst_loss": "ce"},
        {"inst_loss": "none"},
        {"bag_weight": 0.3},
        {"k_sample": 1},
        {"subtyping": True},
        {"scale_loss": 0.5},
        {"label_smoothing": 0.1},
        {"lr": 2e-3},
        {"weight_decay": 0.5},
        {"schedule": "onecycle"},
        {"schedule": "cosine"},
        {"accumulate": 3},
        {"gradient_clip": 0.1},
        {"drop_out": 0.5},
        {"pooling": "reference"},
        {"epochs": 3},
        {"sampling": "balanced"},
        {"max_tiles": 4},
        {"precision": "bf16-mixed"},
    ],
)
def test_every_training_option_changes_the_training(change: dict[str, Any]) -> None:
    base, _ = train(make_config(**QUICK), n_val=0)
    changed, _ = train(make_config(**QUICK | change), n_val=0)
    assert not torch.equal(weights(base), weights(changed))


def test_a_plateau_needs_something_to_watch() -> None:
    with pytest.raises(ConfigInvalid, match="no validation slides"):
        train(make_config(**QUICK, schedule="plateau"), n_val=0)


def test_the_process_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    handler = signal.getsignal(signal.SIGINT)
    threads = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit_with = make_config(**QUICK, threads=1)
            model = CMAMIL(("10x", "20x"), 6, 3, dim=16)
            before = torch.get_rng_state(), before[1], before[2]
            fit(
                model,
                bags(6),
                bags(3),
                fit_with,
                seed=0,
                on_progress=lambda *_: threads.append(torch.get_num_threads()),
            )
        assert threads == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert not torch.are_deterministic_algorithms_enabled()
    assert signal.getsignal(signal.SIGINT) == handler
    assert not model.training
    assert capfd.readouterr() == ("", "")


def test_progress_is_told_after_each_epoch() -> None:
    seen: list[tuple[int, int, int, set[str]]] = []

    def note(fold: int, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        seen.append((fold, epoch, epochs, set(metrics)))

    train(make_config(**QUICK), fold=4, on_progress=note)
    names = {"train_loss", "lr", "val_loss", "val_auc", "val_accuracy"}
    assert seen == [(4, 1, 2, names), (4, 2, 2, names)]


def test_the_best_validation_epoch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUC .6, .8, .8 with less loss, NaN, .7: the third epoch."""
    script = iter([(0.6, 1.0), (0.8, 0.9), (0.8, 0.5), (math.nan, 0.1), (0.7, 0.1)])
    states: list[torch.Tensor] = []

    def scripted(module: MILModule) -> None:
        auc, loss = next(script)
        module.validation = {"val_auc": auc, "val_loss": loss, "val_accuracy": 0.5}
        states.append(weights(module.model))  # type: ignore[arg-type]

    monkeypatch.setattr(MILModule, "on_validation_epoch_end", scripted)
    model, result = train(make_config(epochs=5, lr=1e-3))
    assert result.best_epoch == 3
    assert torch.equal(weights(model), states[2])
    assert not torch.equal(states[2], states[4])


def test_ranks_of_epochs() -> None:
    ranks = [
        selection_rank({"val_auc": auc, "val_loss": loss})
        for auc, loss in (
            (math.nan, math.nan),
            (math.nan, 2.0),
            (math.nan, 1.0),
            (0.5, math.nan),
            (0.5, 9.0),
            (0.5, 1.0),
            (0.6, 9.0),
        )
    ]
    assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)


def test_early_stopping_works_at_few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    def worsening(module: MILModule) -> None:
        loss = module.validation.get("val_loss", 0.0) + 1.0
        module.validation = {"val_auc": 0.5, "val_loss": loss, "val_accuracy": 0.5}

    monkeypatch.setattr(MILModule, "on_validation_epoch_end", worsening)
    _, result = train(make_config(epochs=20, lr=1e-3, early_stopping=True))
    assert (result.best_epoch, len(result.history)) == (1, 5)
    _, result = train(make_config(epochs=6, lr=1e-3))
    assert (result.best_epoch, len(result.history)) == (1, 6)


def test_validation_on_one_class_falls_back_to_the_loss() -> None:
    torch.manual_seed(7)
    model = CMAMIL(("10x", "20x"), 6, 3, dim=16)
    one_class = [bag for bag in bags(9, 100) if bag.label == 0]
    result = fit(model, bags(18), one_class, make_config(epochs=4, lr=1e-3), seed=0)
    losses = [row["val_loss"] for row in result.history]
    assert all(math.isnan(row["val_auc"]) for row in result.history)
    assert result.best_epoch == 1 + int(np.argmin(losses))


def test_without_validation_the_last_epoch_is_kept() -> None:
    _, result = train(make_config(epochs=3), n_val=0)
    assert result.best_epoch == 3
    assert set(result.history[0]) == {"epoch", "train_loss", "lr"}


@pytest.mark.parametrize("schedule", ["constant", "onecycle", "cosine"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_single_step_is_a_training(schedule: str, accumulate: int) -> None:
    model = CMAMIL(("10x", "20x"), 6, 3, dim=16)
    before = weights(model)
    config = make_config(epochs=1, schedule=schedule, accumulate=accumulate)
    fit(model, bags(1), [], config, seed=0)
    assert weights(model).isfinite().all() and not torch.equal(weights(model), before)


def test_divergence_is_a_clear_error() -> None:
    with pytest.raises(
        NonFiniteOutput, match=r"epoch \d+: the training loss is (nan|inf); lower lr"
    ):
        train(make_config(epochs=5, lr=1e30))


def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(EngineMissing, match="cuda:7"):
        train(make_config(device="cuda:7"))


def test_float16_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigInvalid, match=r"'fp16-mixed' needs a CUDA device.*bf16-mixed"):
        train(make_config(precision="fp16-mixed", device="cpu"))


def test_mixed_precision_computes_in_bfloat16_and_validates_in_float32() -> None:
    seen: dict[str, set[torch.dtype]] = {"train": set(), "val": set()}

    def note(module: torch.nn.Module, inputs: Any, output: MILOutput) -> None:
        embedding = output.embedding["20x"]
        seen["train" if module.training else "val"].add(embedding.dtype)

    torch.manual_seed(7)
    model = CMAMIL(("10x", "20x"), 6, 3, dim=16)
    model.register_forward_hook(note)
    fit(model, bags(6), bags(3, 100), make_config(**QUICK, precision="bf16-mixed"), seed=0)
    assert seen == {"train": {torch.bfloat16}, "val": {torch.float32}}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_ctrl_c_reaches_the_caller() -> None:
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_config(epochs=3), on_progress=interrupt)
    assert signal.getsignal(signal.SIGINT) == handler


def test_bags_of_one_tile_train() -> None:
    tiny = [
        TrainingBag(
            bag.slide,
            bag.label,
            {name: x[:1] for name, x in bag.features.items()},
            {"children_10x": torch.tensor([[0, -1, -1, -1]]), "ancestor_20x": torch.tensor([[-1]])},
        )
        for bag in bags(6)
    ]
    model = CMAMIL(("10x", "20x"), 6, 3, dim=16)
    fit(model, tiny, tiny, make_config(**QUICK), seed=0)
    assert np.isfinite(predict_logits(model, tiny, TrainConfig())).all()
