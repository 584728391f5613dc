from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.models.build import build_model
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.models.output import MILOutput

SCALES = ("5x", "10x", "20x")
DIM, PARENTS = 12, (0, 0, 1, 2, 1)


def make_bag(counts: tuple[int, ...], seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random features, and random relatives of which some are missing."""
    g = torch.Generator().manual_seed(seed)
    names = SCALES[: len(counts)]
    features = {s: torch.randn(n, DIM, generator=g) for s, n in zip(names, counts, strict=True)}
    index = {}
    for position in range(len(counts) - 1):
        shape = (counts[position], 4)
        rows = torch.randint(-1, counts[position + 1], shape, generator=g)
        index[f"children_{names[position]}"] = rows
    if len(counts) > 1:
        index[f"ancestor_{names[-1]}"] = torch.randint(-1, counts[0], (counts[-1], 1), generator=g)
    return features, index


def make_model(n_scales: int = 1, seed: int = 0, **options: Any) -> HMIL:
    torch.manual_seed(seed)
    model = HMIL(SCALES[:n_scales], DIM, 5, PARENTS, **({"dim": 8} | options))
    with torch.no_grad():  # a trained model has neither equal scales nor zero biases
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(("head", "count"), [("shared", 1_348_172), ("per_class", 1_351_764)])
def test_published_settings_have_the_published_number_of_parameters(head: str, count: int) -> None:
    """One scale, ResNet-50 features, [3, 7] classes of BRACS; heads per class add 2,050 + 1,542."""
    model = HMIL(["20x"], 1024, 7, [0, 0, 0, 1, 1, 2, 2], head=head)
    assert sum(p.numel() for p in model.parameters()) == count
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    biases = [m.bias for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(bool((bias == 0).all()) for bias in biases)
    first = next(w for w in weights if w.shape == (256, 1024))
    assert float(first.detach().std()) == pytest.approx((2 / 1024) ** 0.5, rel=0.02)


@pytest.mark.parametrize("head", ["shared", "per_class"])
def test_forward_is_the_published_formula(head: str) -> None:
    model = make_model(head=head, standardize=False, coarse_hidden=5, fine_hidden=3)
    x = make_bag((9,))[0]["5x"]
    output = model({"5x": x}, {})
    first, second = model.trunk[0], model.trunk[3]
    h1 = torch.relu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    h2 = h1 @ model.refine.weight.T + model.refine.bias
    for h, level, n_classes, logits, attention in (
        (h1, model.coarse, 3, output.coarse.logits, output.coarse.attention["5x"]),
        (h2, model.fine, 5, output.logits, output.attention["5x"]),
    ):
        gate = level.attention
        raw = gate.score(torch.tanh(gate.value(h)) * torch.sigmoid(gate.gate(h)))
        a = torch.softmax(raw, dim=0).T
        seen = a @ h
        for c in range(n_classes):
            row = c if head == "per_class" else 0
            by_hand = seen[c] @ level.head.weight[row] + level.head.bias[row]
            torch.testing.assert_close(logits[0, c], by_hand)
        torch.testing.assert_close(attention, a)
    torch.testing.assert_close(output.class_embedding, F.normalize(seen, dim=1))
    assert output.embedding["5x"].shape == (9, 8)


def test_tiles_of_one_scale_attend_to_each_other_in_the_width_of_the_model() -> None:
    """Not in that of the features, which is many times as wide."""
    model = HMIL(["20x"], 1024, 5, PARENTS, dim=8, cross_attention="global")
    assert [tuple(a.weight.shape) for a in model.adaptors] == [(8, 1024)]
    assert model.cross[0].query.weight.shape == (8, 8) and model.trunk[0].in_features == 8
    assert not HMIL(["20x"], 1024, 5, PARENTS, dim=8, cross_attention="nested").adaptors


def test_a_projection_of_the_features_narrows_all_that_follows() -> None:
    model, features = make_model(embed_dim=5), make_bag((9,))[0]
    assert model.embed is not None and model.trunk[0].weight.shape == (8, 5)
    behind = HMIL(["5x"], 5, 5, PARENTS, dim=8, standardize=False).eval()
    behind.load_state_dict(
        {n: t for n, t in model.state_dict().items() if not n.startswith(("embed", "standard"))}
    )
    projected = torch.relu(model.embed(features["5x"].clamp(-10, 10)))
    found, expected = model(features, {}), behind({"5x": projected}, {})
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.coarse.logits, expected.coarse.logits)


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias", "none"])
@pytest.mark.parametrize("head", ["shared", "per_class"])
@settings(max_examples=12, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_contributions_and_bias_add_up_to_the_logits_of_both_levels(
    cross_attention: str, head: str, counts: list[int], seed: int
) -> None:
    model = make_model(len(counts), seed, cross_attention=cross_attention, head=head)
    with torch.no_grad():
        output: MILOutput = model(*make_bag(tuple(counts), seed))
    assert output.coarse is not None and output.class_embedding is not None
    for level, n_classes in ((output, 5), (output.coarse, 3)):
        total = level.bias + sum(c.sum(0, keepdim=True) for c in level.contribution.values())
        torch.testing.assert_close(total, level.logits, atol=1e-4, rtol=1e-4)
        assert level.logits.shape == (1, n_classes) and level.logits.isfinite().all()
        for name, n in zip(SCALES, counts, strict=False):
            assert level.attention[name].shape == (n_classes, n)
            torch.testing.assert_close(level.attention[name].sum(1), torch.ones(n_classes))
            assert level.contribution[name].shape == (n, n_classes)
    fused = output.scale_weights[None] @ output.scale_logits + output.bias
    torch.testing.assert_close(fused, output.logits)
    torch.testing.assert_close(output.class_embedding.norm(dim=1), torch.ones(5))


def test_a_head_per_class_tells_classes_apart_that_attend_alike() -> None:
    """With equal attention the shared head cannot but give all classes one answer."""
    spread = {}
    for head in ("shared", "per_class"):
        model = make_model(head=head)
        with torch.no_grad():
            model.fine.attention.score.weight.zero_()
        spread[head] = float(model(*make_bag((20,))).logits.detach().std())
    assert spread["shared"] < 1e-6
    assert spread["per_class"] > 0.1


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias"])
def test_several_scales_look_at_each_other_and_one_has_no_adaptor(cross_attention: str) -> None:
    assert len(make_model(1).adaptors) == len(make_model(1).cross) == 0
    model = make_model(3, cross_attention=cross_attention)
    assert len(model.adaptors) == len(model.cross) == 3
    features, index = make_bag((4, 7, 11))
    before = model(features, index)
    changed = model(features | {"10x": features["10x"] + 1}, index)
    # 5x asks 10x, which 20x does not
    assert not torch.allclose(before.embedding["5x"], changed.embedding["5x"])
    torch.testing.assert_close(before.embedding["20x"], changed.embedding["20x"])


@pytest.mark.parametrize("n_scales", [1, 3])
def test_gradients_reach_every_parameter(n_scales: int) -> None:
    model = make_model(n_scales).train()
    output = model(*make_bag((3, 6, 12)[:n_scales]))
    coarse = F.cross_entropy(output.coarse.logits, torch.tensor([0]))
    (F.cross_entropy(output.logits, torch.tensor([1])) + coarse).backward()
    # what no softmax sees: a shift of all scores, and any score of the only relative
    idle = {f"cross.{scale}.key.bias" for scale in range(3)}
    idle |= {f"cross.2.{name}" for name in ("query.weight", "query.bias", "key.weight")}
    for name, parameter in model.named_parameters():
        if name in idle:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_dropout_acts_in_training_only() -> None:
    bag = make_bag((9,))
    model = make_model(dropout=0.5)
    torch.testing.assert_close(model(*bag).logits, model(*bag).logits)
    assert not torch.equal(model.train()(*bag).logits, model(*bag).logits)


def test_hyperparameters_rebuild_the_model() -> None:
    model = make_model(
        2, cross_attention="nested-bias", head="shared", dropout=0.1, fine_hidden=3, embed_dim=5
    )
    again = build_model(model.kind, json.loads(json.dumps(model.hyperparameters)))
    again.load_state_dict(model.state_dict())
    bag = make_bag((3, 5))
    assert torch.equal(again.eval()(*bag).logits, model(*bag).logits)
    assert again.hyperparameters == model.hyperparameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": [0, 1]}, "each of 3 classes"),
        ({"parents": [0, 0, 0]}, "at least two"),
        ({"parents": [0, 2, 2]}, "every coarse class"),
        ({"parents": [0, -1, 1]}, "every coarse class"),
        ({"head": "own"}, "head"),
        ({"fine_hidden": 0}, "fine_hidden"),
        ({"scales": "5x"}, "at least one scale"),
        ({"dropout": 1.0}, "dropout"),
        ({"parents": None}, "parents"),
    ],
)
def test_bad_hyperparameters_are_named(options: dict[str, Any], message: str) -> None:
    merged = {"scales": ["5x"], "feature_dim": 4, "n_classes": 3, "parents": [0, 1, 1]} | options
    with pytest.raises(ConfigInvalid, match=message):
        build_model("hmil", {name: value for name, value in merged.items() if value is not None})
