"""Baselines are trained, scored and refused like the other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import build_model
from cmamil_sdk.models.names import MODELS, SINGLE_SCALE
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.runs import load_checkpoint
from cmamil_sdk.training.config import TrainConfig, make_config
from cmamil_sdk.training.data import TrainingBag, bag_tensors
from cmamil_sdk.training.evaluation import evaluate_run
from cmamil_sdk.training.fit import fit, predict_logits
from cmamil_sdk.training.losses import cross_entropy, instance_loss, smooth_top1_svm
from cmamil_sdk.training.module import MILModule
from cmamil_sdk.training.objective import CLAMObjective, SlideObjective, make_objective
from cmamil_sdk.training.run import train

from .conftest import Cohort, make_bag

pytestmark = pytest.mark.usefixtures("blank_pictures")

CLAM, DSMIL = "torchmil:CLAM_SB", "torchmil:DSMIL"
ALL = set(MODELS)
HIERARCHY = {"benign": "harmless", "in situ": "tumour", "invasive": "tumour"}
OWNERS = {
    "cross_attention": {"cma-mil", "hmil"},
    "cross_norm": {"cma-mil", "hmil"},
    "pooling": {"cma-mil"},
    "attention_dim": ALL - {"hmil", "mean", "max", "torchmil:TransMIL"},
    "heads": {"cma-mil"},
    "bag_loss": ALL - {"hmil"},
    "inst_loss": {"cma-mil", CLAM},
    "bag_weight": {"cma-mil", CLAM},
    "k_sample": {"cma-mil", CLAM},
    "subtyping": {"cma-mil", CLAM},
    "scale_loss": {"cma-mil"},
    "recipe": {"hmil"},
    "head": {"hmil"},
    "logit_adjust": {"hmil"},
    "embed_dim": ALL,
    "dim": ALL,
    "drop_out": ALL,
    "label_smoothing": ALL,
}
VALUES: dict[str, Any] = {
    "cross_attention": "global",
    "cross_norm": "layer",
    "pooling": "reference",
    "attention_dim": 8,
    "heads": 2,
    "bag_loss": "svm",
    "inst_loss": "ce",
    "bag_weight": 0.5,
    "k_sample": 2,
    "subtyping": True,
    "scale_loss": 0.5,
    "recipe": "paper",
    "head": "shared",
    "logit_adjust": 0.5,
    "embed_dim": 7,
    "dim": 32,
    "drop_out": 0.5,
    "label_smoothing": 0.1,
}


def bags(n: int, first_seed: int = 0) -> list[TrainingBag]:
    return [bag_tensors(make_bag(f"s{i}", i % 3, seed=first_seed + i), i % 3) for i in range(n)]


def make_model(kind: str, **options: Any) -> MILModel:
    torch.manual_seed(7)
    arguments = {"scales": ["20x"], "feature_dim": 6, "n_classes": 3, "dim": 16, "dropout": 0.2}
    return build_model(kind, arguments | options)


def fitted(kind: str, **options: Any) -> tuple[MILModel, Tensor]:
    settings = make_config(model=kind, **({"epochs": 2, "lr": 1e-3} | options))
    model = make_model(kind, dropout=settings.drop_out)
    fit(model, bags(15), [], settings, seed=0)
    return model, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", SINGLE_SCALE)
def test_every_baseline_learns_and_two_runs_are_equal_to_the_bit(kind: str) -> None:
    quick = {"epochs": 12, "lr": 1e-2}
    (model, one), (_, two) = fitted(kind, **quick), fitted(kind, **quick)
    assert torch.equal(one, two)
    unseen = bags(45, 500)
    answers = predict_logits(model, unseen, TrainConfig()).argmax(axis=1)
    assert np.mean(answers == [bag.label for bag in unseen]) > 0.8


@pytest.mark.parametrize("field", OWNERS)
def test_an_option_is_taken_by_its_models_and_refused_by_the_others(field: str) -> None:
    for kind in MODELS:
        options = {"hierarchy": HIERARCHY} if kind == "hmil" else {}
        if kind in OWNERS[field]:
            config = make_config(model=kind, **options, **{field: VALUES[field]})
            assert getattr(config, field) == VALUES[field]
            assert field in config.model_dump()
        else:
            with pytest.raises(ConfigInvalid, match=f"{field} is an option of .* '{kind}'"):
                make_config(model=kind, **options, **{field: VALUES[field]})
            assert field not in make_config(model=kind, **options).model_dump()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchmil:GTP", "not offered, because it needs a graph"),
        ("torchmil:DTFDMIL", "its answers are random"),
        ("TransMIL", "there is no model 'TransMIL'; choose one of cma-mil, hmil, abmil"),
    ],
)
def test_models_that_are_not_offered(model: str, message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        make_config(model=model)


@pytest.mark.parametrize(
    "change",
    [
        {"bag_loss": "svm"},
        {"inst_loss": "ce"},
        {"inst_loss": "none"},
        {"bag_weight": 0.3},
        {"k_sample": 1},
        {"subtyping": True},
        {"label_smoothing": 0.1},
        {"drop_out": 0.5},
    ],
)
def test_every_option_changes_the_training_of_clam(change: dict[str, Any]) -> None:
    assert not torch.equal(fitted(CLAM)[1], fitted(CLAM, **change)[1])


@pytest.mark.parametrize("kind", ["mean", DSMIL])
@pytest.mark.parametrize("change", [{"bag_loss": "svm"}, {"label_smoothing": 0.1}])
def test_the_slide_loss_is_an_option_of_every_baseline(kind: str, change: dict[str, Any]) -> None:
    assert not torch.equal(fitted(kind)[1], fitted(kind, **change)[1])


def output_of(kind: str, label: int, **options: Any) -> tuple[Any, MILOutput, float]:
    """The objective, the output for one bag in evaluation mode, and the loss."""
    model = make_model(kind).eval()
    objective = make_objective(model, make_config(model=kind, **options), [0, 1, 2]).eval()
    bag = bags(1)[0]
    for parameter in [*model.parameters(), *objective.parameters()]:
        parameter.requires_grad_(False)
    output = model(bag.features, bag.index)
    return objective, output, float(objective(output, label, 0))


@pytest.mark.parametrize("subtyping", [False, True])
def test_clam_ranks_tiles_by_attention_alone(subtyping: bool) -> None:
    objective, output, found = output_of(CLAM, 2, k_sample=3, subtyping=subtyping)
    assert isinstance(objective, CLAMObjective) and objective.tile_classifiers is not None
    assert output.attention is not None
    by_attention = output.attention["20x"][0].argsort(descending=True)
    tiles = objective.tile_classifiers(output.embedding["20x"]).view(9, 3, 2)
    top, low = by_attention[:3], by_attention[-3:]
    ends = torch.cat([tiles[top, 2], tiles[low, 2]])
    tile_loss = smooth_top1_svm(ends, torch.tensor([1] * 3 + [0] * 3))
    if subtyping:
        for other in (0, 1):
            tile_loss = tile_loss + smooth_top1_svm(tiles[top, other], torch.tensor([0] * 3))
    expected = 0.7 * cross_entropy(output.logits, torch.tensor([2])) + 0.3 * tile_loss
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_dsmil_trains_both_streams_and_the_others_the_answer() -> None:
    objective, output, found = output_of(DSMIL, 1)
    assert isinstance(objective, SlideObjective) and output.streams is not None
    of_stream = [cross_entropy(row[None], torch.tensor([1])).item() for row in output.streams]
    assert found == pytest.approx(sum(of_stream) / 2, rel=1e-5)
    _, output, found = output_of("torchmil:TransMIL", 1)
    assert found == pytest.approx(cross_entropy(output.logits, torch.tensor([1])).item())


def test_a_loss_that_needs_what_the_model_lacks_says_so() -> None:
    _, output, _ = output_of("mean", 0)
    clam = make_objective(make_model(CLAM), make_config(model=CLAM), [0])
    with pytest.raises(ConfigInvalid, match="The loss needs attention"):
        clam(output, 0, 0)


def test_the_librarys_instance_loss_is_not_that_of_the_paper() -> None:
    """torchmil 1.0.2 mixes the rows of a bag in its smooth SVM, so ours stands in its place."""
    from torchmil.nn.utils import SmoothTop1SVM

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 1, 1, 0, 0, 0])
    rows = torch.stack([smooth_top1_svm(x[i : i + 1], y[i : i + 1]) for i in range(6)])
    assert smooth_top1_svm(x, y).item() == pytest.approx(rows.mean().item())
    theirs = SmoothTop1SVM(2)(x, y[:, None].float()).item()
    assert abs(theirs - rows.mean().item()) > 0.5
    rank = torch.arange(6.0)[:, None].expand(6, 2)
    assert instance_loss(
        rank, x[:, None].expand(6, 2, 2), 1, 8, subtyping=False, loss=smooth_top1_svm
    ).item() == pytest.approx(smooth_top1_svm(x.flip(0), y).item())


@pytest.mark.parametrize("kind", ["max", CLAM, "torchmil:TransMIL"])
def test_a_run_from_features_to_scores(cohort: Cohort, tmp_path: Path, kind: str) -> None:
    config = make_config(
        model=kind, scales=("20x",), epochs=8, lr=5e-3, folds=2, dim=16, embed_dim=5
    )
    run = tmp_path / "run"
    summary = train(config, features=cohort.features, labels=cohort.labels, run=run)
    assert summary["model"] == kind and summary["mean"]["auc"] > 0.8
    again = evaluate_run(run, features=cohort.features, labels=cohort.labels).summary
    assert again["mean"] == summary["mean"]
    meta, tensors = load_checkpoint(run / "fold_0")
    assert meta.model_kind == kind and meta.hyperparameters["embed_dim"] == 5
    assert tensors["embed.weight"].shape == (5, 6)


def test_what_no_model_can_be_built_from_is_refused_before_training(
    cohort: Cohort, tmp_path: Path
) -> None:
    paths = {"features": cohort.features, "labels": cohort.labels, "run": tmp_path / "run"}
    with pytest.raises(ConfigInvalid, match="the features have 10x, 20x; choose one with scales"):
        train(make_config(model="mean"), **paths)
    with pytest.raises(ConfigInvalid, match="reads one scale, scales names 2"):
        make_config(model="mean", scales=("10x", "20x"))
    with pytest.raises(ConfigInvalid, match="multiple of its 4 heads"):
        train(make_config(model="torchmil:TransMIL", scales=("20x",), dim=30), **paths)
    assert not paths["run"].exists()


def musk_bags() -> list[TrainingBag]:
    """MUSK2's extremes: its smallest bag has one instance, its largest 1,044."""
    g = torch.Generator().manual_seed(3)
    return [
        TrainingBag(str(n), label, {"20x": torch.randn(n, 6, generator=g)}, {})
        for label, n in enumerate((1, 1044))
    ]


@pytest.mark.parametrize("kind", [name for name in MODELS if name != "hmil"])
def test_accumulated_bags_of_extreme_sizes_equal_one_by_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # plain descent shows the gradient itself
    monkeypatch.setattr(
        MILModule, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=1.0)
    )
    pair, config = musk_bags(), make_config(model=kind, epochs=1, accumulate=2)
    moments = {"20x": (torch.zeros(6), torch.ones(6))}
    trained, single = make_model(kind, dropout=0.0), make_model(kind, dropout=0.0).train()
    fit(trained, pair, [], config, seed=0, moments=moments)

    torch.manual_seed(0)  # as fit does before it draws the tile classifiers
    objective = make_objective(single, config, [0, 1])
    one_by_one = []
    for bag in pair:
        loss = objective(single(bag.features, bag.index), bag.label, 0)
        assert loss.isfinite()
        parameters = list(single.parameters())
        one_by_one.append(
            torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        )
    for (name, start), *gradients in zip(single.named_parameters(), *one_by_one, strict=True):
        expected = start.detach() - (gradients[0] + gradients[1]) / 2
        found = trained.get_parameter(name).detach()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
