"""A loss over a step's slides has the gradient it would have with all their graphs in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.training.config import make_config
from cmamil_sdk.training.data import TrainingBag
from cmamil_sdk.training.fit import fit
from cmamil_sdk.training.module import MILModule
from cmamil_sdk.training.objective import HMILObjective, make_objective
from cmamil_sdk.training.steps import StepBag, StepLoss, Steps

PARENTS = (0, 0, 1, 1)
HIERARCHY = {"a": "x", "b": "x", "c": "y", "d": "y"}


def make_bags(n: int) -> list[TrainingBag]:
    g = torch.Generator().manual_seed(1)
    return [
        TrainingBag(str(i), i % 4, {"20x": torch.randn(3 + i, 6, generator=g)}, {})
        for i in range(n)
    ]


def make_model(dropout: float = 0.0) -> HMIL:
    torch.manual_seed(5)
    return HMIL(["20x"], 6, 4, PARENTS, dim=8, dropout=dropout, standardize=False)


def config(**options: Any) -> Any:
    return make_config(model="hmil", hierarchy=HIERARCHY, **options)


def gradients(model: HMIL) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("recipe", ["ours", "paper", "repo"])
def test_slide_by_slide_is_the_same_as_all_at_once(recipe: str, dropout: float) -> None:
    bags, epoch = make_bags(6), 10
    model = make_model(dropout).train()
    settings = config(recipe=recipe, contrast_weight=0.7, epochs=20)
    objective = make_objective(model, settings, [bag.label for bag in bags])
    assert objective.needs_step

    torch.manual_seed(11)
    outputs = [model(bag.features, bag.index) for bag in bags]
    embeddings = torch.stack([output.class_embedding for output in outputs])
    labels = torch.tensor([bag.label for bag in bags])
    single = torch.stack(
        [objective(output, bag.label, epoch) for output, bag in zip(outputs, bags, strict=True)]
    )
    whole = single.mean() + objective.step_loss(embeddings, labels, epoch)
    whole.backward()
    expected = gradients(model)
    model.zero_grad()

    torch.manual_seed(11)
    step, losses = StepLoss(model, objective), []
    for item in Steps(bags, 6):
        if item.opens:
            step.open(item.opens, epoch, torch.device("cpu"))
        output = model(item.bag.features, item.bag.index)
        loss = objective(output, item.bag.label, epoch) + step.share(output)
        (loss / len(bags)).backward()
        losses.append(loss.item())
    assert sum(losses) / 6 == pytest.approx(whole.item(), rel=1e-5)
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_the_trainer_steps_with_the_gradient_of_the_whole_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accumulated by Lightning, also at the last step of an epoch that has fewer slides."""
    stepped: list[list[Tensor]] = []

    def note(module: MILModule, optimizer: object) -> None:
        stepped.append(gradients(module.model))  # type: ignore[arg-type]

    monkeypatch.setattr(MILModule, "on_before_optimizer_step", note)
    settings = config(contrast_weight=0.7, epochs=1, accumulate=8)
    for n in (8, 6):
        bags, model = make_bags(n), make_model()
        labels = torch.tensor([bag.label for bag in bags])
        objective = make_objective(model, settings, labels.tolist())
        outputs = [model(bag.features, bag.index) for bag in bags]
        whole = objective.step_loss(torch.stack([o.class_embedding for o in outputs]), labels, 0)
        for output, bag in zip(outputs, bags, strict=True):
            whole = whole + objective(output, bag.label, 0) / n
        (whole * n / 8).backward()
        expected = gradients(model)
        stepped.clear()
        fit(make_model(), bags, [], settings, seed=0)
        (found,) = stepped
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_bags_are_dealt_to_steps_in_order() -> None:
    bags = make_bags(5)
    items = list(Steps(bags, 2))
    assert [item.bag.slide for item in items] == ["0", "1", "2", "3", "4"]
    assert [[b.slide for b in item.opens] for item in items] == [
        ["0", "1"],
        [],
        ["2", "3"],
        [],
        ["4"],
    ]
    assert len(Steps(bags, 2)) == 5
    moved = items[0].to(torch.device("cpu"))
    assert isinstance(moved, StepBag) and moved.opens == items[0].opens


def test_the_contrast_changes_the_training_and_its_weight_zero_does_not() -> None:
    def trained(**options: Any) -> Tensor:
        model = make_model(0.2)
        settings = config(epochs=2, accumulate=4, lr=1e-2, **options)
        fit(model, make_bags(10), [], settings, seed=3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, off, on = trained(), trained(contrast_weight=0.0), trained(contrast_weight=1.0)
    assert torch.equal(plain, off)
    assert not torch.equal(plain, on)
    assert torch.equal(on, trained(contrast_weight=1.0))


def test_adjustment_knows_the_frequencies_of_both_levels() -> None:
    objective = make_objective(make_model(), config(), [0, 0, 0, 0, 1, 2, 3, 3])
    assert isinstance(objective, HMILObjective)
    torch.testing.assert_close(objective.fine_prior.exp(), torch.tensor([4, 1, 1, 2]) / 8)
    torch.testing.assert_close(objective.coarse_prior.exp(), torch.tensor([5, 3]) / 8)
    half = make_objective(make_model(), config(logit_adjust=0.5), [0, 0, 0, 0, 1, 2, 3, 3])
    torch.testing.assert_close(half.fine_prior, objective.fine_prior / 2)
    assert not list(objective.parameters()) and not objective.state_dict()


def test_a_model_without_class_embeddings_has_no_step_loss() -> None:
    model = CMAMIL(["20x"], 6, 4, dim=8)
    step = StepLoss(model, make_objective(model, make_config(), [0]))
    with pytest.raises(ConfigInvalid, match="class embeddings"):
        step.open(tuple(make_bags(2)), 0, torch.device("cpu"))
