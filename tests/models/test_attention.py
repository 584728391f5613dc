from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmamil_sdk.models.attention import (
    GatedAttention,
    GlobalCrossAttention,
    NestedBiasCrossAttention,
    NestedCrossAttention,
    linear_after,
)

DIM = 8


def tiles(n: int, seed: int) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def nested_by_loop(
    block: NestedCrossAttention, asking: Tensor, answering: Tensor, relatives: Tensor
) -> Tensor:
    rows = []
    for tile, family in zip(asking, relatives.tolist(), strict=True):
        attended = torch.zeros(DIM)
        members = [answering[row] for row in family if row >= 0]
        if members:
            query = block.query(tile)
            scores = [(query @ block.key(m)).item() / math.sqrt(DIM) for m in members]
            top = max(scores)
            powers = [math.exp(score - top) for score in scores]
            for power, member in zip(powers, members, strict=True):
                attended = attended + power / sum(powers) * block.value(member)
        rows.append(block.norm(tile + attended))
    return torch.stack(rows)


def test_nested_attention_equals_a_loop_over_tiles() -> None:
    torch.manual_seed(0)
    block = NestedCrossAttention(DIM, "layer")
    asking, answering = tiles(9, 1), tiles(20, 2)
    relatives = torch.randint(-1, 20, (9, 4), generator=torch.Generator().manual_seed(3))
    relatives[0], relatives[1] = -1, torch.tensor([5, -1, -1, -1])
    torch.testing.assert_close(
        block(asking, answering, relatives),
        nested_by_loop(block, asking, answering, relatives),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("width", [1, 4])
def test_nested_attention_and_its_gradients_equal_the_plain_form(width: int) -> None:
    """Keys and values of all relatives first, then attention, as the formula is written."""
    torch.manual_seed(0)
    block = NestedCrossAttention(DIM, "layer")
    asking, answering = tiles(9, 1).requires_grad_(), tiles(20, 2).requires_grad_()
    relatives = torch.randint(-1, 20, (9, width), generator=torch.Generator().manual_seed(3))
    relatives[0] = -1
    present = relatives >= 0
    key, value = block.key(answering)[relatives], block.value(answering)[relatives]
    scores = (block.query(asking)[:, None] * key).sum(-1) / math.sqrt(DIM)
    weights = torch.softmax(scores.masked_fill(~present, -1e9), dim=-1) * present
    plain = block.norm(asking + (weights[:, :, None] * value).sum(1))
    lean = block(asking, answering, relatives)
    torch.testing.assert_close(lean, plain, atol=1e-6, rtol=1e-5)
    weight = tiles(9, 4)
    inputs = [asking, answering, *block.parameters()]
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    found = torch.autograd.grad((lean * weight).sum(), inputs, materialize_grads=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_two_linear_layers_as_one_equal_both_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    wide, narrow, x = nn.Linear(DIM, 50), nn.Linear(50, 3), tiles(9, 1).requires_grad_()
    weight = torch.randn(9, 3)
    inputs = [x, *wide.parameters(), *narrow.parameters()]
    one, two = linear_after(narrow, wide, x), narrow(wide(x))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad((one * weight).sum(), inputs),
        torch.autograd.grad((two * weight).sum(), inputs),
        atol=1e-5,
        rtol=1e-5,
    )
    assert torch.equal(linear_after(narrow, None, wide(x)), two)


def test_nested_attention_sees_no_tile_of_another_parent() -> None:
    torch.manual_seed(0)
    block = NestedCrossAttention(DIM, "layer")
    asking, answering = tiles(3, 1), tiles(12, 2)
    relatives = torch.arange(12).reshape(3, 4)
    before = block(asking, answering, relatives)
    changed = answering.clone()
    changed[4:8] = 1e6
    after = block(asking, changed, relatives)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.allclose(after[1], before[1])


def test_a_tile_without_relatives_falls_back_to_itself_without_nan() -> None:
    block = NestedCrossAttention(DIM, "layer")
    asking = tiles(4, 1).requires_grad_()
    answering = tiles(1, 2).requires_grad_()
    output = block(asking, answering, torch.full((4, 4), -1))
    torch.testing.assert_close(output, block.norm(asking))
    output.square().sum().backward()
    assert asking.grad is not None and asking.grad.isfinite().all()
    assert answering.grad is not None and torch.equal(answering.grad, torch.zeros(1, DIM))


def test_a_single_ancestor_hands_its_value_down() -> None:
    block = NestedCrossAttention(DIM, "layer")
    asking, answering = tiles(5, 1), tiles(2, 2)
    ancestors = torch.tensor([[0], [1], [0], [1], [1]])
    expected = block.norm(asking + block.value(answering)[ancestors[:, 0]])
    torch.testing.assert_close(block(asking, answering, ancestors), expected)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (7, 1), (30, 50)])
def test_global_attention_equals_a_dense_softmax(n: int, m: int) -> None:
    torch.manual_seed(0)
    block = GlobalCrossAttention(DIM, "layer")
    asking, answering = tiles(n, 1), tiles(m, 2)
    scores = block.query(asking) @ block.key(answering).T / math.sqrt(DIM)
    attended = torch.softmax(scores, dim=1) @ block.value(answering)
    expected = F.layer_norm(asking + attended, (DIM,), block.norm.weight, block.norm.bias, 1e-5)
    torch.testing.assert_close(block(asking, answering), expected, atol=1e-6, rtol=1e-5)


def test_global_attention_does_not_hold_the_score_matrix() -> None:
    """20,000 x 40,000 scores would be 3.2 GB; an allocation of that size fails here."""
    block = GlobalCrossAttention(DIM, "layer")
    asking, answering = tiles(20_000, 1), tiles(40_000, 2)
    largest = 0
    with (
        torch.no_grad(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        block(asking[:2000], answering)
    for event in profile.events() or []:
        largest = max(largest, event.cpu_memory_usage)
    assert 0 < largest < 2000 * 40_000 * 4 / 10


def make_biased() -> tuple[NestedBiasCrossAttention, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    relatives = torch.randint(-1, 20, (9, 4), generator=torch.Generator().manual_seed(3))
    for row in relatives:  # a tile has each relative once
        row[1:][(row[1:, None] == row[None, :-1]).any(dim=1)] = -1
    relatives[0] = -1
    return NestedBiasCrossAttention(DIM, "layer"), tiles(9, 1), tiles(20, 2), relatives


def test_nested_bias_adds_one_number_to_the_scores_of_relatives() -> None:
    block, asking, answering, relatives = make_biased()
    assert block.bias.item() == 3.0
    with torch.no_grad():
        block.bias.fill_(-1.5)
    scores = block.query(asking) @ block.key(answering).T / math.sqrt(DIM)
    for tile, family in enumerate(relatives.tolist()):
        for row in family:
            if row >= 0:
                scores[tile, row] = scores[tile, row] - 1.5
    expected = block.norm(asking + torch.softmax(scores, dim=1) @ block.value(answering))
    torch.testing.assert_close(block(asking, answering, relatives), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 60.0])
def test_nested_bias_lies_between_global_and_nested_attention(bias: float) -> None:
    """No bias: global. A bias that drowns all else: nested, where there are relatives."""
    block, asking, answering, relatives = make_biased()
    with torch.no_grad():
        block.bias.fill_(bias)
    other = (NestedCrossAttention if bias else GlobalCrossAttention)(DIM, "layer")
    state = {name: tensor for name, tensor in block.state_dict().items() if name != "bias"}
    other.load_state_dict(state)
    found = block(asking, answering, relatives)
    expected = other(asking, answering, relatives) if bias else other(asking, answering)
    with_relatives = (relatives >= 0).any(dim=1)
    torch.testing.assert_close(
        found[with_relatives], expected[with_relatives], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("limit", [1, 50, 90])
def test_blocks_change_neither_the_answer_nor_the_gradient(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[Tensor]:
        block, asking, answering, relatives = make_biased()
        asking.requires_grad_()
        answering.requires_grad_()
        output = block(asking, answering, relatives)
        output.square().sum().backward()
        return [output, asking.grad, answering.grad, *(p.grad for p in block.parameters())]

    whole = run()
    monkeypatch.setattr("cmamil_sdk.models.attention.MAX_SCORES", limit)
    for found, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_nested_bias_does_not_hold_the_score_matrix_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmamil_sdk.models.attention.MAX_SCORES", 20_000)
    block = NestedBiasCrossAttention(DIM, "layer")
    asking, answering = tiles(300, 1).requires_grad_(), tiles(4_000, 2)
    relatives = torch.arange(1_200).reshape(300, 4)
    held: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = block(asking, answering, relatives)
    assert max(held) <= 4_000 * DIM  # the whole matrix would be 300 * 4,000
    output.sum().backward()
    assert asking.grad is not None and asking.grad.isfinite().all()


def test_gated_attention_scores_each_tile_by_the_published_formula() -> None:
    block = GatedAttention(DIM, 4, 0.25, heads=2).eval()
    x = tiles(6, 1)
    hidden = torch.tanh(block.value(x)) * torch.sigmoid(block.gate(x))
    expected = (hidden @ block.score.weight.T + block.score.bias).T
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (2, 6)
