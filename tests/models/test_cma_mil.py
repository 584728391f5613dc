from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

from cmamil_sdk.errors import ConfigInvalid, ScaleMismatch
from cmamil_sdk.models.build import build_model
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.output import MILOutput

SCALES = ("5x", "10x", "20x")
DIM = 12


def make_bag(counts: tuple[int, ...], seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random features, and random relatives of which some are missing."""
    g = torch.Generator().manual_seed(seed)
    names = SCALES[: len(counts)]
    features = {s: torch.randn(n, DIM, generator=g) for s, n in zip(names, counts, strict=True)}
    index = {}
    for (name, n), (_, finer_n) in zip(
        list(zip(names, counts, strict=True))[:-1],
        list(zip(names, counts, strict=True))[1:],
        strict=True,
    ):
        index[f"children_{name}"] = torch.randint(-1, finer_n, (n, 4), generator=g)
    if len(counts) > 1:
        index[f"ancestor_{names[-1]}"] = torch.randint(-1, counts[0], (counts[-1], 1), generator=g)
    return features, index


def make_model(n_scales: int = 3, seed: int = 0, **options: Any) -> CMAMIL:
    torch.manual_seed(seed)
    model = CMAMIL(SCALES[:n_scales], DIM, 3, **({"dim": 8} | options))
    with torch.no_grad():  # a trained model has neither equal scales nor a zero bias
        model.fusion.copy_(torch.randn(n_scales))
        model.bias.copy_(torch.randn(3))
        for block in model.cross:
            block.value.weight.copy_(torch.randn(8, 8) / 3)
    return model.eval()


def run(model: CMAMIL, counts: tuple[int, ...], seed: int = 0) -> MILOutput:
    with torch.no_grad():
        output: MILOutput = model(*make_bag(counts, seed))
    return output


def test_published_settings_have_the_published_number_of_parameters() -> None:
    for attention in ("global", "nested"):
        model = CMAMIL(SCALES, 512, 3, cross_attention=attention, cross_norm="layer")
        assert sum(p.numel() for p in model.parameters()) == 363_338


@pytest.mark.parametrize(
    ("n_scales", "cross_attention", "gain"),
    [(3, "nested", 4.0), (3, "none", 1.0), (1, "nested", 1.0), (1, "global", 1.0)],
)
def test_scores_start_larger_where_scales_attend(
    n_scales: int, cross_attention: str, gain: float
) -> None:
    """By torch weights of a layer that reads n values lie within 1 / sqrt(n) at first."""
    torch.manual_seed(0)
    model = CMAMIL(SCALES[:n_scales], DIM, 3, dim=512, cross_attention=cross_attention)
    score = model.attention.score
    assert score.weight.shape == (1, 256)
    assert 0.97 * gain / 16 < score.weight.abs().max() <= gain / 16
    assert score.bias.abs().max() <= 1.0 / 16


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias"])
def test_every_projection_learns_from_the_first_step(cross_attention: str) -> None:
    torch.manual_seed(0)
    model = CMAMIL(SCALES, DIM, 3, dim=8, cross_attention=cross_attention)
    model(*make_bag((4, 7, 11))).logits.logsumexp(-1).sum().backward()
    for block in model.cross:
        assert block.value.weight.grad is not None and block.value.weight.grad.abs().sum() > 0


def test_adapted_tiles_drop_out_in_training() -> None:
    model = make_model(1, dropout=0.5).train()
    tiles = model(*make_bag((400,))).embedding[SCALES[0]]
    plain = model.eval()(*make_bag((400,))).embedding[SCALES[0]]
    kept = tiles != 0
    torch.testing.assert_close(tiles[kept], 2.0 * plain[kept])
    assert 0.45 < kept[plain != 0].float().mean() < 0.55


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias", "none"])
@pytest.mark.parametrize("pooling", ["attention", "reference"])
@settings(max_examples=12, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_contributions_and_bias_add_up_to_the_logits(
    cross_attention: str, pooling: str, counts: list[int], seed: int
) -> None:
    model = make_model(len(counts), seed, cross_attention=cross_attention, pooling=pooling)
    output = run(model, tuple(counts), seed)
    total = output.bias + sum(c.sum(0, keepdim=True) for c in output.contribution.values())
    torch.testing.assert_close(total, output.logits, atol=1e-5, rtol=1e-5)
    assert output.logits.isfinite().all()
    for name, n in zip(SCALES, counts, strict=False):
        assert output.attention[name].shape == (1, n)
        torch.testing.assert_close(output.attention[name].sum(), torch.tensor(1.0))
        assert output.contribution[name].shape == (n, 3)
        assert output.embedding[name].shape == (n, 8)
    assert output.scale_logits.shape == (len(counts), 3)
    torch.testing.assert_close(output.scale_weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("pooling", ["attention", "reference"])
@pytest.mark.parametrize("counts", [(3, 5, 9), (7,)])
def test_forward_is_the_published_formula(counts: tuple[int, ...], pooling: str) -> None:
    """Also on one scale, whose ring is itself."""
    model = make_model(
        len(counts),
        cross_attention="global",
        cross_norm="layer",
        pooling=pooling,
        standardize=False,
    )
    features, index = make_bag(counts)
    output = model(features, index)
    h = [
        torch.relu(F.linear(features[s], a.weight, a.bias))
        for s, a in zip(SCALES[: len(counts)], model.adaptors, strict=True)
    ]
    logits = torch.zeros(1, 3)
    weights = torch.softmax(model.fusion, 0)
    for position, block in enumerate(model.cross):
        asking, answering = h[position], h[(position + 1) % len(h)]
        q, k, v = block.query(asking), block.key(answering), block.value(answering)
        attended = torch.softmax(q @ k.T / 8**0.5, dim=1) @ v
        tiles = F.layer_norm(asking + attended, (8,), block.norm.weight, block.norm.bias, 1e-5)
        gate = model.attention
        raw = gate.score(torch.tanh(gate.value(tiles)) * torch.sigmoid(gate.gate(tiles)))
        a = torch.softmax(raw, dim=0)
        omega = a if pooling == "attention" else torch.exp(a) / torch.exp(a).sum()
        scores = tiles @ model.classifier.weight.T + model.classifier.bias
        logits = logits + weights[position] * (omega * scores).sum(0, keepdim=True)
    torch.testing.assert_close(output.logits, logits + model.bias, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_scales", [1, 3])
def test_the_published_norm_stands_alone_where_no_scale_attends(n_scales: int) -> None:
    plain = make_model(n_scales, cross_attention="none")
    normed = make_model(n_scales, cross_attention="none", cross_norm="layer")
    counts = (3, 5, 9)[:n_scales]
    for name, embedding in run(plain, counts).embedding.items():
        expected = F.layer_norm(embedding, (8,))
        torch.testing.assert_close(run(normed, counts).embedding[name], expected)


def test_one_scale_has_no_nested_tiles_to_ask() -> None:
    for kind in ("nested", "nested-bias", "none"):
        assert not make_model(1, cross_attention=kind).cross
    alone = make_model(1, cross_attention="global")
    assert len(alone.cross) == 1 and alone.index_names == ()


@pytest.mark.parametrize("pooling", ["attention", "reference"])
def test_several_heads_answer_their_sum_over_the_root_of_their_number(pooling: str) -> None:
    model = make_model(1, heads=3, pooling=pooling)
    output = run(model, (7,))
    tiles = output.embedding["5x"]
    raw = model.attention(tiles)
    assert raw.shape == (3, 7) and model.classifier.weight.shape == (9, 8)
    logits, shares, attention = torch.zeros(3), torch.zeros(7, 3), torch.zeros(7)
    for head in range(3):
        a = torch.softmax(raw[head], dim=0)
        omega = a if pooling == "attention" else torch.exp(a) / torch.exp(a).sum()
        mine = slice(3 * head, 3 * head + 3)
        answers = tiles @ model.classifier.weight[mine].T + model.classifier.bias[mine]
        logits += (omega[:, None] * answers).sum(0) / 3**0.5
        shares += omega[:, None] * answers / 3**0.5
        attention += a / 3
    torch.testing.assert_close(output.logits[0], logits + model.bias, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.contribution["5x"], shares, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.attention["5x"][0], attention)


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias"])
def test_permuting_tiles_permutes_outputs_and_leaves_the_logits(cross_attention: str) -> None:
    model = make_model(cross_attention=cross_attention)
    features, index = make_bag((4, 7, 11))
    order = {s: torch.randperm(len(features[s])) for s in SCALES}
    new_row = {s: torch.cat([torch.argsort(order[s]), torch.tensor([-1])]) for s in SCALES}
    moved = {s: features[s][order[s]] for s in SCALES}
    moved_index = {
        "children_5x": new_row["10x"][index["children_5x"]][order["5x"]],
        "children_10x": new_row["20x"][index["children_10x"]][order["10x"]],
        "ancestor_20x": new_row["5x"][index["ancestor_20x"]][order["20x"]],
    }
    before, after = model(features, index), model(moved, moved_index)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
    for s in SCALES:
        torch.testing.assert_close(after.attention[s], before.attention[s][:, order[s]])
        torch.testing.assert_close(
            after.contribution[s], before.contribution[s][order[s]], atol=1e-6, rtol=1e-5
        )


def test_dropout_acts_in_training_only_and_at_its_rate() -> None:
    features, index = make_bag((4, 7, 11))
    without = make_model(dropout=0.0).train()
    torch.testing.assert_close(
        without(features, index).logits, without.eval()(features, index).logits
    )
    with_dropout = make_model(dropout=0.5).train()
    assert not torch.equal(
        with_dropout(features, index).logits, with_dropout(features, index).logits
    )
    assert with_dropout.attention.dropout.p == 0.5


def test_the_projection_of_the_features_is_one_for_all_scales_and_comes_first() -> None:
    features, index = make_bag((4, 7, 11))
    model = make_model(embed_dim=5)
    mean, std = torch.full((DIM,), 0.5), torch.full((DIM,), 2.0)
    model.set_standardization(dict.fromkeys(SCALES, (mean, std)))
    assert model.embed is not None and model.embed.weight.shape == (5, DIM)
    assert [adaptor.weight.shape for adaptor in model.adaptors] == [(8, 5)] * 3
    behind = CMAMIL(SCALES, 5, 3, dim=8, standardize=False).eval()
    state = {
        n: t for n, t in model.state_dict().items() if n.split(".")[0] in ("adaptors", "cross")
    }
    behind.load_state_dict(
        state | {n: t for n, t in model.state_dict().items() if "." not in n}, strict=False
    )
    behind.attention, behind.classifier = model.attention, model.classifier
    projected = {s: torch.relu(model.embed((x - mean) / std)) for s, x in features.items()}
    found = model(features, index).logits
    torch.testing.assert_close(found, behind(projected, index).logits, atol=1e-6, rtol=1e-5)
    assert make_model().embed is None


def test_the_width_of_the_gated_attention_is_half_of_dim_or_as_wished() -> None:
    assert make_model().attention.value.weight.shape == (4, 8)
    assert make_model(attention_dim=7).attention.value.weight.shape == (7, 8)


def test_standardisation_is_part_of_the_model() -> None:
    features, index = make_bag((4, 7, 11))
    mean, std = torch.full((DIM,), 3.0), torch.full((DIM,), 2.0)
    std[0] = 1e-9
    model = make_model()
    model.set_standardization(dict.fromkeys(SCALES, (mean, std)))
    guarded = std.clone()
    guarded[0] = 1.0
    plain = make_model(standardize=False)
    by_hand = {s: ((x - mean) / guarded).clamp(-10, 10) for s, x in features.items()}
    torch.testing.assert_close(model(features, index).logits, plain(by_hand, index).logits)
    absurd = {s: x.clone() for s, x in features.items()}
    absurd["20x"][0] = 1e9
    clipped = {s: x.clone() for s, x in features.items()}
    clipped["20x"][0] = mean + 10 * guarded
    torch.testing.assert_close(model(absurd, index).logits, model(clipped, index).logits)
    with pytest.raises(ConfigInvalid, match="standardize=False"):
        plain.set_standardization(dict.fromkeys(SCALES, (mean, std)))


def test_reference_pooling_is_nearly_a_mean_and_attention_is_not() -> None:
    """Defect M3: exp(softmax) lies in [1, e]."""
    reference = make_model(cross_attention="none", pooling="reference")
    attention = make_model(cross_attention="none")
    for model in (reference, attention):
        with torch.no_grad():
            model.attention.score.weight.mul_(20.0)
    away = {}
    for name, model in (("reference", reference), ("attention", attention)):
        output = run(model, (50, 200, 800))
        mean = model.classifier(output.embedding["20x"]).mean(0)
        away[name] = (output.scale_logits[2] - mean).abs().max().item()
    assert away["reference"] < 0.02
    assert away["attention"] > 10 * away["reference"]


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias", "none"])
def test_gradients_reach_every_parameter(cross_attention: str) -> None:
    model = make_model(cross_attention=cross_attention).train()
    output = model(*make_bag((3, 6, 12)))
    F.cross_entropy(output.logits, torch.tensor([1])).backward()
    # what no softmax sees: a shift of all scores, and any score of the only relative
    idle = {f"cross.{scale}.key.bias" for scale in range(3)}
    idle |= {f"cross.2.{name}" for name in ("query.weight", "query.bias", "key.weight")}
    for name, parameter in model.named_parameters():
        if cross_attention == "nested" and name in idle:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_hyperparameters_rebuild_the_model() -> None:
    model = make_model(
        2, cross_attention="global", pooling="reference", dropout=0.1, embed_dim=5, attention_dim=3
    )
    document = json.loads(json.dumps(model.hyperparameters))
    again = build_model(model.kind, document)
    again.load_state_dict(model.state_dict())
    bag = make_bag((3, 5))
    assert torch.equal(again.eval()(*bag).logits, model(*bag).logits)
    assert again.hyperparameters == model.hyperparameters


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("cma_mil", {}, "no model 'cma_mil'"),
        ("cma-mil", {"width": 3}, "width"),
        ("cma-mil", {"scales": None}, "scales"),
        ("cma-mil", {"scales": ["5x", "5x"]}, "each once"),
        ("cma-mil", {"scales": "5x"}, "at least one scale"),
        ("cma-mil", {"pooling": "max"}, "pooling"),
        ("cma-mil", {"cross_attention": "ring"}, "cross_attention"),
        ("cma-mil", {"dropout": 1.0}, "dropout"),
        ("cma-mil", {"dim": 1}, "dim"),
        ("cma-mil", {"embed_dim": 0}, "embed_dim"),
        ("cma-mil", {"attention_dim": 0}, "attention_dim"),
        ("cma-mil", {"heads": 0}, "heads"),
        ("cma-mil", {"feature_dim": 0}, "feature_dim"),
        ("cma-mil", {"n_classes": 1}, "n_classes"),
    ],
)
def test_bad_hyperparameters_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    merged = {"scales": ["5x"], "feature_dim": 4, "n_classes": 2} | options
    given_options = {name: value for name, value in merged.items() if value is not None}
    with pytest.raises(ConfigInvalid, match=message):
        build_model(kind, given_options)


def test_a_missing_scale_or_index_array_is_named() -> None:
    model = make_model()
    features, index = make_bag((2, 3, 4))
    with pytest.raises(ScaleMismatch, match="10x"):
        model({s: x for s, x in features.items() if s != "10x"}, index)
    with pytest.raises(ScaleMismatch, match="ancestor_20x"):
        model(features, {k: v for k, v in index.items() if k != "ancestor_20x"})


class _Logits(torch.nn.Module):
    def __init__(self, model: CMAMIL) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor], index: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.model(features, index).logits
        return logits


@pytest.mark.parametrize("cross_attention", ["nested", "global", "nested-bias"])
def test_torch_export_with_free_bag_sizes_equals_eager_down_to_one_tile(
    cross_attention: str,
) -> None:
    model = make_model(cross_attention=cross_attention)
    features, index = make_bag((5, 9, 21))
    index = {name: index[name] for name in model.index_names}
    rows = {s: torch.export.Dim(f"n_{s}", min=1, max=1_000_000) for s in SCALES}
    shapes = (
        {s: {0: rows[s]} for s in SCALES},
        {name: {0: rows[name.split("_")[1]]} for name in index},
    )
    # As the exporter does: a scan would carry gradients along, and a bag of one block be the only one.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):
        exported = torch.export.export(
            _Logits(model),
            (features, index),
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
    for counts in ((1, 1, 1), (1, 4, 16), (13, 40, 150), (40, 150, 590)):
        features, index = make_bag(counts, seed=7)
        index = {name: index[name] for name in model.index_names}
        torch.testing.assert_close(
            exported(features, index), model(features, index).logits, atol=1e-6, rtol=1e-5
        )
