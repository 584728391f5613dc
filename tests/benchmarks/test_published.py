"""The models that training speed is compared with compute what the publications say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cmamil_sdk.benchmarks.published import PublishedCMAMIL, PublishedHMIL
from cmamil_sdk.models.cma_mil import CMAMIL
from cmamil_sdk.models.hmil import HMIL
from cmamil_sdk.training.losses import bag_alignment_as_coded, instance_alignment_as_coded

SCALES = ("5x", "10x", "20x")
BRACS = (0, 0, 0, 1, 1, 2, 2)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_published_numbers_of_parameters() -> None:
    instance_heads = 3 * (128 * 2 + 2)
    assert count(PublishedCMAMIL(SCALES, 512, 3)) == 363_338 + instance_heads
    assert count(PublishedHMIL(1024, BRACS)) == 1_348_172


def linear(layer: nn.Module, row: list[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        sum(w * x for w, x in zip(ws, row, strict=True)) + b
        for ws, b in zip(weight, bias, strict=True)
    ]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def test_cma_mil_equals_a_computation_number_by_number() -> None:
    torch.manual_seed(0)
    model = PublishedCMAMIL(("a", "b"), 3, 2, dim=4, k=2).eval()
    features = {"a": torch.randn(5, 3), "b": torch.randn(4, 3)}
    tiles = [
        [[max(0.0, v) for v in linear(adaptor, x)] for x in features[name].tolist()]
        for name, adaptor in zip("ab", model.adaptors, strict=True)
    ]
    streams, instance = [], []
    for block, asking, answering in zip(model.cross, tiles, tiles[::-1], strict=True):
        seen = []
        for tile in asking:
            query = linear(block.query, tile)
            keys = [linear(block.key, other) for other in answering]
            values = [linear(block.value, other) for other in answering]
            shares = softmax([sum(map(float.__mul__, query, key)) / 2.0 for key in keys])
            mixed = [
                t + sum(s * value[i] for s, value in zip(shares, values, strict=True))
                for i, t in enumerate(tile)
            ]
            mean = sum(mixed) / 4
            deviation = math.sqrt(sum((m - mean) ** 2 for m in mixed) / 4 + 1e-5)
            seen.append([(m - mean) / deviation for m in mixed])
        scores = []
        for tile in seen:
            value = [math.tanh(v) for v in linear(model.attention.value[0], tile)]
            gate = [1 / (1 + math.exp(-v)) for v in linear(model.attention.gate[0], tile)]
            scores += linear(
                model.attention.score, [v * g for v, g in zip(value, gate, strict=True)]
            )
        weights = [math.exp(share) for share in softmax(scores)]
        scored = [
            [w * c for c in linear(model.classifier, t)] for w, t in zip(weights, seen, strict=True)
        ]
        streams.append([sum(column) / sum(weights) for column in zip(*scored, strict=True)])
        order = sorted(range(len(seen)), key=lambda n: -scored[n][1])
        losses = []
        for tile, target in [*((n, 1) for n in order[:2]), *((n, 0) for n in order[-2:])]:
            logits = [weights[tile] * v for v in linear(model.instance_classifiers[1], seen[tile])]
            slack = [v + (i != target) - logits[target] for i, v in enumerate(logits)]
            losses.append(math.log(sum(math.exp(s) for s in slack)))
        instance.append(sum(losses) / 4)
    logits = [(a + b) / 2 for a, b in zip(*streams, strict=True)]
    with torch.no_grad():
        found, found_instance = model(features, 1)
        found_loss = model.loss(features, 1)
    assert found[0].tolist() == pytest.approx(logits, abs=1e-5)
    assert float(found_instance) == pytest.approx(sum(instance) / 2, abs=1e-5)
    bag = -math.log(softmax(logits)[1])
    expected = 0.7 * bag + 0.3 * sum(instance) / 2
    assert float(found_loss) == pytest.approx(expected, abs=1e-5)


def adopt(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy weights over by their order, which is the same but for the tile classifiers."""
    source = [p for name, p in theirs.named_parameters() if "instance_classifiers" not in name]
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in source:
        by_shape.setdefault(tuple(parameter.shape), []).append(parameter.detach())
    ours.load_state_dict(
        {name: by_shape[tuple(p.shape)].pop(0) for name, p in ours.named_parameters()}
    )


def test_cma_mil_is_ours_with_the_published_settings() -> None:
    torch.manual_seed(0)
    theirs = PublishedCMAMIL(SCALES, 6, 3, dim=16).eval()
    ours = CMAMIL(
        *(SCALES, 6, 3),
        dim=16,
        cross_attention="global",
        cross_norm="layer",
        pooling="reference",
        standardize=False,
    ).eval()
    adopt(ours, theirs)
    features = {name: torch.randn(n, 6) for name, n in zip(SCALES, (3, 12, 48), strict=True)}
    torch.testing.assert_close(ours(features, {}).logits, theirs(features, 0)[0])


def test_hmil_is_ours_with_the_published_settings() -> None:
    torch.manual_seed(0)
    theirs = PublishedHMIL(48, BRACS, dim=24, fine_hidden=10)
    ours = HMIL(
        *(("20x",), 48, 7, BRACS), dim=24, fine_hidden=10, head="shared", standardize=False
    ).eval()
    parts = {"trunk.0": "trunk.0", "trunk.3": "trunk.2", "refine": "refine"}
    for level in ("coarse", "fine"):
        gate = f"{level}_attention"
        parts |= {f"{level}.head": f"{level}_head", f"{level}.attention.score": f"{gate}.score"}
        parts |= {
            f"{level}.attention.{branch}": f"{gate}.{branch}.0" for branch in ("value", "gate")
        }
    ours.load_state_dict(
        {
            f"{name}.{kind}": theirs.state_dict()[f"{part}.{kind}"]
            for name, part in parts.items()
            for kind in ("weight", "bias")
        }
    )
    tiles = torch.randn(9, 48)
    coarse, fine, coarse_map, fine_map = theirs(tiles)
    output = ours({"20x": tiles}, {})
    torch.testing.assert_close(output.logits, fine)
    torch.testing.assert_close(output.coarse.logits, coarse)
    torch.testing.assert_close(output.attention["20x"], fine_map)
    torch.testing.assert_close(output.coarse.attention["20x"], coarse_map)
    parents, target = torch.tensor(BRACS), torch.tensor([1])
    expected = (
        -torch.log_softmax(coarse, 1)[0, 1]
        - torch.log_softmax(fine, 1)[0, 4]
        + bag_alignment_as_coded(fine, target, parents)
        + instance_alignment_as_coded(coarse_map, fine_map, parents)
    )
    torch.testing.assert_close(theirs.loss(tiles, 4), expected)
