from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cmamil_sdk.training.losses import (
    bag_loss_function,
    cross_entropy,
    instance_loss,
    instance_loss_function,
    smooth_top1_svm,
    total_loss,
)

LOGITS = torch.tensor([[1.0, 2.0, -0.5], [0.2, 0.1, 0.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 2])


def test_cross_entropy_by_hand() -> None:
    rows = []
    for x, y in zip(LOGITS.tolist(), TARGET.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in x))
        rows.append((log_sum - x[y], sum(log_sum - v for v in x) / 3))
    plain = sum(row[0] for row in rows) / 2
    uniform = sum(row[1] for row in rows) / 2
    assert cross_entropy(LOGITS, TARGET).item() == pytest.approx(plain)
    assert cross_entropy(LOGITS, TARGET, 0.1).item() == pytest.approx(0.9 * plain + 0.1 * uniform)


def test_smooth_svm_by_hand() -> None:
    rows = []
    for x, y in zip(LOGITS.tolist(), TARGET.tolist(), strict=True):
        slack = [v + (j != y) - x[y] for j, v in enumerate(x)]
        rows.append(math.log(sum(math.exp(s) for s in slack)))
    assert smooth_top1_svm(LOGITS, TARGET).item() == pytest.approx(sum(rows) / 2)


@pytest.mark.parametrize(("lead", "hard"), [(6.9077, False), (6.9078, True), (20.0, True)])
def test_smooth_svm_turns_hard_at_a_lead_of_ln_1000(lead: float, hard: bool) -> None:
    x = torch.tensor([[lead, 0.0]], dtype=torch.float64)
    for label, slack in ((0, [0.0, 1 - lead]), (1, [1 + lead, 0.0])):
        smooth = math.log(sum(math.exp(s) for s in slack))
        expected = max(slack) if hard else smooth
        assert smooth_top1_svm(x, torch.tensor([label])).item() == pytest.approx(
            expected, abs=1e-12
        )


def test_smooth_svm_scales_with_temperature_and_margin() -> None:
    """L(x, t, m) = t * L(x / t, 1, m / t)."""
    direct = smooth_top1_svm(LOGITS, TARGET, temperature=0.5, margin=2.0)
    scaled = 0.5 * smooth_top1_svm(LOGITS / 0.5, TARGET, temperature=1.0, margin=4.0)
    torch.testing.assert_close(direct, scaled)


@pytest.mark.parametrize(("name", "smoothing"), [("ce", 0.0), ("ce", 0.1), ("svm", 0.0)])
@pytest.mark.parametrize("lead", [0.0, 10.0])
def test_gradients_of_the_slide_losses(name: str, smoothing: float, lead: float) -> None:
    logits = LOGITS.clone()
    logits[0, 1] += lead
    loss = bag_loss_function(name, smoothing)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, TARGET), logits.requires_grad_(), eps=1e-6, atol=1e-6
    )


def rank_and_logits(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    rank = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return rank, torch.randn(n, 3, 2, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize(("n", "kk"), [(2, 1), (5, 2), (9, 3), (50, 3)])
def test_instance_loss_by_hand(n: int, kk: int, subtyping: bool) -> None:
    rank, logits = rank_and_logits(n)
    label, k = 1, 3
    by_rank = sorted(range(n), key=lambda tile: -rank[tile, label].item())
    rows = [(tile, 1) for tile in by_rank[:kk]] + [(tile, 0) for tile in by_rank[-kk:]]
    assert len({tile for tile, _ in rows}) == 2 * kk

    def ce(tile: int, classifier: int, target: int) -> float:
        x = logits[tile, classifier].tolist()
        return math.log(math.exp(x[0]) + math.exp(x[1])) - x[target]

    expected = sum(ce(tile, label, target) for tile, target in rows) / len(rows)
    if subtyping:
        for other in (0, 2):
            top = sorted(range(n), key=lambda tile: -rank[tile, other].item())[:kk]
            expected += sum(ce(tile, other, 0) for tile in top) / kk
    loss = instance_loss(
        rank, logits, label, k, subtyping=subtyping, loss=instance_loss_function("ce")
    )
    assert loss.item() == pytest.approx(expected)


def test_instance_loss_of_a_single_tile_is_zero() -> None:
    rank, logits = rank_and_logits(1)
    loss = instance_loss(rank, logits, 0, 8, subtyping=True, loss=smooth_top1_svm)
    assert loss.item() == 0.0


def test_instance_loss_keeps_its_ends_apart_where_ranks_are_equal() -> None:
    logits = torch.zeros(4, 2, 2, dtype=torch.float64)
    logits[:2, 0, 1] = 50.0  # the first two say yes, the last two no: no loss if they are the ends
    logits[2:, 0, 0] = 50.0
    loss = instance_loss(
        torch.zeros(4, 2), logits, 0, 2, subtyping=False, loss=instance_loss_function("ce")
    )
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["ce", "svm"])
def test_gradient_of_the_instance_loss(name: str) -> None:
    rank, logits = rank_and_logits(7)
    loss = instance_loss_function(name)
    assert torch.autograd.gradcheck(
        lambda x: instance_loss(rank, x, 2, 3, subtyping=True, loss=loss), logits.requires_grad_()
    )


def test_gradients_worked_out_by_hand() -> None:
    """Cross-entropy: softmax less truth; smooth SVM: softmax of the slack less truth; hard: +-1."""
    logits = LOGITS.clone().requires_grad_()
    truth = torch.eye(3, dtype=torch.float64)[TARGET]
    (found,) = torch.autograd.grad(cross_entropy(logits, TARGET), logits)
    torch.testing.assert_close(found, (LOGITS.softmax(1) - truth) / 2)
    (found,) = torch.autograd.grad(smooth_top1_svm(logits, TARGET), logits)
    torch.testing.assert_close(found, ((LOGITS + 1 - truth).softmax(1) - truth) / 2)
    hard = torch.tensor([[9.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(smooth_top1_svm(hard, torch.tensor([2])), hard)
    assert found.tolist() == [[1.0, 0.0, -1.0]]


def test_the_tile_loss_teaches_the_ends_and_nothing_else() -> None:
    rank, logits = rank_and_logits(9)
    logits.requires_grad_()
    loss = instance_loss(rank, logits, 1, 2, subtyping=False, loss=instance_loss_function("svm"))
    (gradient,) = torch.autograd.grad(loss, logits)
    order = rank[:, 1].argsort(descending=True).tolist()
    ends = [*order[:2], *order[-2:]]
    assert sorted(gradient.abs().sum((1, 2)).nonzero().flatten().tolist()) == sorted(ends)
    assert not gradient[:, [0, 2]].any()
    for tile in ends:  # yes grows for the top, shrinks for the bottom
        yes = float(gradient[tile, 1, 1])
        assert yes < 0 if tile in order[:2] else yes > 0


def test_total_by_hand() -> None:
    bag, instance, scale = torch.tensor(2.0), torch.tensor(5.0), torch.tensor(3.0)
    total = total_loss(bag, instance, scale, bag_weight=0.7, scale_weight=0.5)
    assert total.item() == pytest.approx(0.7 * 2 + 0.3 * 5 + 0.5 * 3)
    alone = total_loss(bag, None, None, bag_weight=0.7, scale_weight=0.5)
    assert alone.item() == 2.0
    parts = [torch.tensor(x, requires_grad=True) for x in (2.0, 5.0, 3.0)]
    total = total_loss(*parts, bag_weight=0.7, scale_weight=0.5)
    assert [g.item() for g in torch.autograd.grad(total, parts)] == pytest.approx([0.7, 0.3, 0.5])
