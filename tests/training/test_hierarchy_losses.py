"""HMIL's losses against hand computations, their gradients, and the published golden values."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmamil_sdk.training.losses import (
    bag_alignment,
    bag_alignment_as_coded,
    instance_alignment,
    instance_alignment_as_coded,
    log_prior,
    supervised_contrast,
    supervised_contrast_as_coded,
)
from cmamil_sdk.training.recipes import alpha, beta, tau

PARENTS = torch.tensor([0, 0, 1, 2, 1])
FINE = torch.tensor([[1.0, -0.5, 0.3, 2.0, 0.1], [0.2, 0.1, 1.5, -1.0, 0.4]], dtype=torch.float64)
TRUTH = torch.tensor([0, 1])


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def gathered(row: list[float]) -> list[float]:
    p = probabilities(row)
    return [p[0] + p[1], p[2] + p[4], p[3]]


def maps(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    coarse, fine = (torch.randn(k, n, generator=g, dtype=torch.float64) for k in (3, 5))
    return coarse.softmax(1), fine.softmax(1)


def embeddings(*shape: int) -> Tensor:
    g = torch.Generator().manual_seed(4)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


def test_bag_alignment_by_hand() -> None:
    rows = zip(FINE.tolist(), TRUTH.tolist(), strict=True)
    expected = sum(-math.log(gathered(row)[y]) for row, y in rows) / 2
    assert bag_alignment(FINE, TRUTH, PARENTS).item() == pytest.approx(expected)


def test_bag_alignment_costs_what_it_should_and_the_published_one_does_not() -> None:
    """Probability .98 on the true coarse class: 0.020 by likelihood, 0.564 as coded."""
    p = torch.tensor([[0.49, 0.49, 0.005, 0.01, 0.005]], dtype=torch.float64)
    assert bag_alignment(p.log(), TRUTH[:1], PARENTS).item() == pytest.approx(0.0202, abs=1e-4)
    coded = bag_alignment_as_coded(p.log(), TRUTH[:1], PARENTS)
    assert coded.item() == pytest.approx(0.5644, abs=1e-3)


def test_bag_alignment_stays_finite_where_probabilities_vanish() -> None:
    logits = torch.tensor([[-2000.0, -2000.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss = bag_alignment(logits, TRUTH[:1], PARENTS)
    loss.backward()
    assert loss.item() == pytest.approx(2000 + math.log(1.5), abs=1e-3)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_bag_alignment_as_coded_by_hand() -> None:
    expected = 0.0
    for row, y in zip(FINE.tolist(), TRUTH.tolist(), strict=True):
        expected -= math.log(probabilities(gathered(row))[y]) / 2
    assert bag_alignment_as_coded(FINE, TRUTH, PARENTS).item() == pytest.approx(expected)


@pytest.mark.parametrize(("sign", "bound"), [(1.0, 0.5514), (-1.0, 1.5514)])
def test_the_second_softmax_keeps_the_published_loss_within_bounds(
    sign: float, bound: float
) -> None:
    certain = torch.tensor([[500.0, 500.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    if sign < 0:
        certain = torch.tensor([[0.0, 0.0, 0.0, 500.0, 0.0]], dtype=torch.float64)
    loss = bag_alignment_as_coded(certain, TRUTH[:1], PARENTS).item()
    assert loss == pytest.approx(bound, abs=1e-4)
    assert bound == pytest.approx(
        math.log(1 + 2 / math.e) if sign > 0 else math.log(math.e + 2), abs=1e-4
    )


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_instance_alignment_by_hand() -> None:
    coarse, fine = maps(7)
    expected = 1 - cosine(coarse[2].tolist(), fine[3].tolist())
    assert instance_alignment(coarse, fine, 3, PARENTS).item() == pytest.approx(expected)


def test_instance_alignment_as_coded_by_hand() -> None:
    coarse, fine = maps(7)
    f = fine.tolist()
    columns = [[f[0][n] + f[1][n], f[2][n] + f[4][n], f[3][n]] for n in range(7)]
    expected = sum(1 - cosine(coarse[:, n].tolist(), columns[n]) for n in range(7)) / 7
    found = instance_alignment_as_coded(coarse, fine, PARENTS)
    assert found.item() == pytest.approx(expected)


def test_equal_peaked_maps_cost_nothing_but_in_the_published_form() -> None:
    """Defect H13: tiles with attention under 1e-8 fall into the cosine's guard."""
    peak = torch.full((1, 1000), -30.0)
    peak[0, :5] = 0.0
    one = peak.softmax(1)
    coarse, fine = one.expand(3, -1), one.expand(5, -1)
    assert instance_alignment(coarse, fine, 3, PARENTS).item() == pytest.approx(0.0, abs=1e-6)
    assert instance_alignment_as_coded(coarse, fine, PARENTS).item() > 0.8


def test_supervised_contrast_by_hand() -> None:
    z, labels, t = embeddings(5, 6), [0, 1, 0, 2, 1], 0.3
    s = (z @ z.T / t).tolist()
    costs = []
    for i, label in enumerate(labels):
        positives = [j for j in range(5) if j != i and labels[j] == label]
        log_sum = math.log(sum(math.exp(s[i][j]) for j in range(5) if j != i))
        if positives:
            costs.append(sum(log_sum - s[i][j] for j in positives) / len(positives))
    assert len(costs) == 4
    found = supervised_contrast(z, torch.tensor(labels), t)
    assert found.item() == pytest.approx(sum(costs) / 4)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_a_pair_there_is_no_contrast_and_no_gradient(labels: list[int]) -> None:
    z = embeddings(len(labels), 6).requires_grad_()
    loss = supervised_contrast(z, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert z.grad is not None and not z.grad.any()


@pytest.mark.parametrize("t", [0.1, 1.0])
def test_supervised_contrast_as_coded_by_hand(t: float) -> None:
    z, labels = embeddings(3, 2, 6), [0, 0, 1]
    rows = z.reshape(6, 6)
    own = [label for label in labels for _ in range(2)]
    s = (rows @ rows.T / t).tolist()
    total = 0.0
    for i in range(6):
        top = max(s[i])
        log_sum = math.log(sum(math.exp(s[i][j] - top) for j in range(6) if j != i) + 1e-6)
        positives = [j for j in range(6) if j != i and own[j] == own[i]]
        share = sum(s[i][j] - top - log_sum for j in positives) / (len(positives) + 1e-6)
        total -= t / 0.1 * share / 6
    found = supervised_contrast_as_coded(z, torch.tensor(labels), t)
    assert found.item() == pytest.approx(total)


def test_the_published_contrast_pulls_the_class_rows_of_one_slide_together() -> None:
    """Defect H11: it is least where all rows of a slide are the same, ours does not look there."""
    labels = torch.tensor([0, 1])
    alike = embeddings(2, 1, 6).expand(2, 4, 6)
    assert supervised_contrast_as_coded(alike, labels, 0.1) < supervised_contrast_as_coded(
        embeddings(2, 4, 6), labels, 0.1
    )


def losses_of(x: Tensor, name: str) -> Tensor:
    """Each loss as a function of one free tensor, through a softmax or a normalisation."""
    if name == "bag":
        return bag_alignment(x[:2], TRUTH, PARENTS)
    if name == "bag as coded":
        return bag_alignment_as_coded(x[:2], TRUTH, PARENTS)
    maps_of = x.T.softmax(1)
    if name == "instance":
        return instance_alignment(maps_of[:3], maps_of, 4, PARENTS)
    if name == "instance as coded":
        return instance_alignment_as_coded(maps_of[:3], maps_of, PARENTS)
    labels = torch.tensor([0, 1, 0, 0, 1, 2])
    if name == "contrast":
        return supervised_contrast(F.normalize(x, dim=1), labels)
    views = F.normalize(
        x.reshape(6, 5, 1).expand(6, 5, 3) * torch.tensor([1.0, 2.0, -1.0]) + 1.0, dim=2
    )
    return supervised_contrast_as_coded(views, labels, 0.5)


@pytest.mark.parametrize(
    "name",
    ["bag", "bag as coded", "instance", "instance as coded", "contrast", "contrast as coded"],
)
def test_gradients(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: losses_of(t, name), x)


def test_schedules_have_their_published_values() -> None:
    assert [alpha(e, 200) for e in (0, 50, 100, 150)] == [1.0, 0.9375, 0.75, 0.4375]
    assert [beta(e, 200) for e in (0, 50, 100, 150)] == [1.0, 0.75, 0.5, 0.25]
    values = [tau(e, 200) for e in (0, 25, 50, 100, 200)]
    assert values == pytest.approx([1.0, 0.868, 0.55, 0.1, 1.0], abs=5e-4)


def test_log_prior_by_hand() -> None:
    found = log_prior(torch.tensor([6.0, 3.0, 0.0]))
    assert found.tolist() == pytest.approx([math.log(0.6), math.log(0.3), math.log(0.1)])


def test_adjusted_logits_ask_for_the_balanced_answer() -> None:
    """Two classes 9 : 1 that no feature tells apart: the best adjusted logits are equal."""
    prior = log_prior(torch.tensor([9.0, 1.0]))
    logits = torch.zeros(1, 2, requires_grad=True)
    target = torch.tensor([0] * 9 + [1])
    F.cross_entropy((logits + prior).expand(10, 2), target).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), atol=1e-6, rtol=0.0)
