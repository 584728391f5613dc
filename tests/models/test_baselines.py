from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmil.models
from torch import Tensor

from cmamil_sdk.errors import ConfigInvalid, DependencyMissing, ScaleMismatch
from cmamil_sdk.models.base import MILModel
from cmamil_sdk.models.build import build_model
from cmamil_sdk.models.names import MODELS, OF_TORCHMIL, SINGLE_SCALE, TORCHMIL, why_no_model
from cmamil_sdk.models.output import MILOutput
from cmamil_sdk.models.single_scale import only_largest

FEATURES, DIM = 6, 16
ADDITIVE = [name for name in SINGLE_SCALE if name != "torchmil:TransMIL"]


def make_model(kind: str, n_classes: int = 3, **options: Any) -> MILModel:
    torch.manual_seed(1)
    arguments = {"scales": ["20x"], "feature_dim": FEATURES, "n_classes": n_classes, "dim": DIM}
    return build_model(kind, arguments | options).eval()


def run(model: MILModel, n: int, seed: int = 0) -> tuple[Tensor, MILOutput]:
    tiles = torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        output: MILOutput = model({"20x": tiles}, {})
    return tiles, output


def first_layer(model: MILModel, tiles: Tensor) -> Tensor:
    adaptor: Any = model.adaptors[0]  # type: ignore[index]
    return torch.relu(F.linear(tiles, adaptor.weight, adaptor.bias))


@pytest.mark.parametrize("kind", SINGLE_SCALE)
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("n", [1, 2, 9, 1044])
def test_the_answer_holds_what_the_model_says_it_has(kind: str, n_classes: int, n: int) -> None:
    model = make_model(kind, n_classes)
    _, output = run(model, n)
    assert output.logits.shape == (1, n_classes) and output.logits.isfinite().all()
    assert output.embedding["20x"].shape == (n, DIM)
    assert (output.attention is not None) == model.has_attention
    assert (output.bias is not None) == (output.contribution is not None) == model.is_additive
    if output.attention is not None:
        maps = output.attention["20x"]
        assert maps.shape == (n_classes if kind == "torchmil:DSMIL" else 1, n)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(len(maps)))


@pytest.mark.parametrize("kind", [name for name in SINGLE_SCALE if name.startswith(TORCHMIL)])
@pytest.mark.parametrize("n", [1, 9, 300])
def test_the_answer_is_that_of_the_library(kind: str, n: int) -> None:
    model: Any = make_model(kind)
    tiles, output = run(model, n)
    with torch.no_grad():
        bag = first_layer(model, tiles)[None]
        theirs = model.net.predict(bag) if kind == "torchmil:DSMIL" else model.net(bag)
    torch.testing.assert_close(output.logits, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("n", [1, 9, 300])
def test_contributions_are_what_the_tiles_bring(kind: str, n: int) -> None:
    model = make_model(kind)
    _, output = run(model, n)
    assert output.bias is not None and output.contribution is not None
    total = output.bias + output.contribution["20x"].sum(0, keepdim=True)
    torch.testing.assert_close(total, output.logits, atol=1e-6, rtol=1e-5)


def test_mean_max_and_attention_pooling_are_the_textbook_formulas() -> None:
    for kind in ("mean", "max", "abmil"):
        model: Any = make_model(kind)
        tiles, output = run(model, 9)
        hidden = first_layer(model, tiles)
        scores = hidden @ model.classifier.weight.T + model.classifier.bias
        if kind == "mean":
            expected = scores.mean(0)
        elif kind == "max":
            expected = scores.amax(0)
        else:
            gate = model.attention
            raw = gate.score(torch.tanh(gate.value(hidden)) * torch.sigmoid(gate.gate(hidden)))
            expected = (torch.softmax(raw, 0) * scores).sum(0)
        torch.testing.assert_close(output.logits[0], expected)


def test_the_first_of_equal_tiles_is_the_largest() -> None:
    scores = torch.tensor([[1.0, -3.0], [4.0, -1.0], [4.0, -2.0]])
    assert only_largest(scores).tolist() == [[0.0, 0.0], [4.0, -1.0], [0.0, 0.0]]


def test_dsmil_is_the_mean_of_its_two_streams() -> None:
    model: Any = make_model("torchmil:DSMIL")
    tiles, output = run(model, 9)
    assert output.streams is not None
    torch.testing.assert_close(output.streams.mean(0, keepdim=True), output.logits)
    hidden = first_layer(model, tiles)
    critical = model.net.inst_classifier(hidden)
    torch.testing.assert_close(output.streams[1], critical.amax(0))
    query = model.net.q_nn(hidden)
    bags = []
    for label in range(3):  # equations 3 to 6 of the paper, class by class
        own = query[critical[:, label].argmax()]
        weights = torch.softmax(query @ own / own.numel() ** 0.5, dim=0)
        bags.append(weights @ hidden)
    head = model.net.bag_classifier.linear
    torch.testing.assert_close(output.streams[0], head(torch.cat(bags)))


@pytest.mark.parametrize("kind", SINGLE_SCALE)
def test_hyperparameters_make_the_same_model_again(kind: str) -> None:
    options: dict[str, Any] = {"embed_dim": 4, "dropout": 0.4, "standardize": False}
    model = make_model(kind, **options | ({"attention_dim": 5} if kind == "abmil" else {}))
    again = build_model(kind, json.loads(json.dumps(model.hyperparameters))).eval()
    again.load_state_dict(model.state_dict())
    assert again.hyperparameters == model.hyperparameters and again.kind == kind
    torch.testing.assert_close(run(again, 9)[1].logits, run(model, 9)[1].logits)


@pytest.mark.parametrize("kind", [name for name in SINGLE_SCALE if make_model(name).has_attention])
def test_the_width_of_the_attention_is_an_option(kind: str) -> None:
    count = [sum(p.numel() for p in make_model(kind, attention_dim=a).parameters()) for a in (3, 7)]
    assert count[0] < count[1]


@pytest.mark.parametrize("kind", SINGLE_SCALE)
def test_dropout_acts_in_training_and_not_in_prediction(kind: str) -> None:
    model = make_model(kind, dropout=0.5)
    torch.testing.assert_close(run(model, 9)[1].logits, run(model, 9)[1].logits, atol=0, rtol=0)
    model.train()
    assert not torch.equal(run(model, 9)[1].logits, run(model, 9)[1].logits)


@pytest.mark.parametrize("kind", SINGLE_SCALE)
def test_every_weight_learns(kind: str) -> None:
    model = make_model(kind).train()
    output = model({"20x": torch.randn(30, FEATURES)}, {})
    answers = output.logits if output.streams is None else output.streams
    F.cross_entropy(answers, torch.zeros(len(answers), dtype=torch.long)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a constant added to all scores of a softmax is lost; torchmil never uses its TransMIL's norm2
    idle = ("attention.score.bias", "norm2.weight", "norm2.bias")
    assert [name for name in without if not name.endswith(idle)] == []


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mean", {"scales": ["10x", "20x"]}, "reads one scale, not 10x, 20x"),
        ("mean", {"attention_dim": 4}, "no attention"),
        ("torchmil:TransMIL", {"attention_dim": 4}, "no attention"),
        ("torchmil:TransMIL", {"dim": 18}, "multiple of its 4 heads"),
        ("torchmil:TransformerABMIL", {"dim": 12}, "multiple of its 8 heads"),
        ("abmil", {"attention_dim": 0}, "attention_dim 0"),
        ("abmil", {"embed_dim": 0}, "embed_dim 0"),
        ("abmil", {"pooling": "attention"}, "no hyper-parameter pooling"),
        ("torchmil:CAMIL", {}, "because it needs a graph of the tiles' neighbours; choose one of"),
        ("torchmil:abmil", {}, "There is no model 'torchmil:abmil'"),
    ],
)
def test_bad_hyperparameters_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        make_model(kind, **options)


def test_a_bag_of_another_scale_is_refused() -> None:
    with pytest.raises(ScaleMismatch, match="20x"):
        make_model("mean")({"10x": torch.zeros(2, FEATURES)}, {})


def test_every_model_of_the_library_is_offered_or_refused_with_the_reason() -> None:
    theirs = {n for n, o in vars(torchmil.models).items() if isinstance(o, type)}
    theirs -= {"MILModel", "MILModelWrapper"}
    assert set(OF_TORCHMIL) < theirs
    for name in theirs - set(OF_TORCHMIL):
        assert "because" in str(why_no_model(f"{TORCHMIL}{name}"))
    assert all(why_no_model(name) is None for name in MODELS)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cmamil_sdk.models.torchmil_adapter", None)
    with pytest.raises(DependencyMissing, match=r"install cmamil-sdk\[train\]"):
        make_model("torchmil:ABMIL")
    assert make_model("abmil").kind == "abmil"
