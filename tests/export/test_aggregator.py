"""Exported aggregators against eager models, on bags this file builds by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from cmamil_sdk.engines import Engine, load_engine  # noqa: E402
from cmamil_sdk.errors import BundleUnsupported, FieldInvalid, ParityFailed  # noqa: E402
from cmamil_sdk.export.aggregator import AggregatorGraph, export_aggregator  # noqa: E402
from cmamil_sdk.export.graph import all_nodes, export_graph  # noqa: E402
from cmamil_sdk.export.graph_form import OPSET  # noqa: E402
from cmamil_sdk.models.base import MILModel  # noqa: E402
from cmamil_sdk.models.build import build_model  # noqa: E402
from cmamil_sdk.tiling.nesting import nesting_arrays  # noqa: E402
from cmamil_sdk.tiling.recipe import Scale, parse_scales  # noqa: E402

DIM, CLASSES, TEMPERATURE = 12, 3, 2.5


@dataclass(frozen=True)
class Exported:
    model: MILModel
    scales: tuple[Scale, ...]
    path: Path
    engine: Engine


def make_model(scales: tuple[Scale, ...], **options: object) -> MILModel:
    torch.manual_seed(3)
    model = build_model(
        "cma-mil",
        {
            "scales": [s.name for s in scales],
            "feature_dim": DIM,
            "n_classes": CLASSES,
            "dim": 8,
            **options,
        },
    )
    # Away from the initial values: zeros among them would hide a wrong index, bias or fusion.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    moments = {s.name: (torch.randn(DIM) * 0.3, torch.rand(DIM) + 0.5) for s in scales}
    model.set_standardization(moments)
    return model.eval()


VARIANTS = {
    "nested": ("5x,10x,20x", {"cross_attention": "nested", "heads": 3}),
    "global": ("2.5x,10x", {"cross_attention": "global"}),
    "nested-bias": ("5x,10x,20x", {"cross_attention": "nested-bias", "embed_dim": 4}),
    "reference": ("5x,20x", {"cross_attention": "none", "pooling": "reference", "heads": 2}),
    "one scale": ("20x", {}),
    "one scale, self-attention": ("20x", {"cross_attention": "global", "cross_norm": "layer"}),
    "norm alone": ("5x,20x", {"cross_attention": "none", "cross_norm": "layer"}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request, tmp_path_factory) -> Exported:
    text, options = VARIANTS[request.param]
    scales = parse_scales(text)
    model = make_model(scales, **options)
    path = tmp_path_factory.mktemp("graphs") / "aggregator.onnx"
    report = export_aggregator(model, scales, TEMPERATURE, path)
    assert set(report) == {
        "aggregator_logits",
        "aggregator_attention",
        "aggregator_contribution",
    }
    assert max(report.values()) < 1e-4
    return Exported(model, scales, path, load_engine(path, engine="onnxruntime", device="cpu"))


def own_bag(exported: Exported, finest: int, seed: int = 0, coarse: int | None = None):
    """Features and parents at random: any tile may be an orphan, coarse tiles may be childless."""
    rng = np.random.default_rng(seed)
    scales = exported.scales
    counts = [coarse or max(1, finest // 3 ** (len(scales) - 1 - i)) for i in range(len(scales))]
    counts[-1] = finest
    parent = {scales[0].name: np.full(counts[0], -1)}
    for i in range(1, len(scales)):
        fit = round(scales[i - 1].mpp / scales[i].mpp) ** 2
        slots = np.repeat(np.arange(counts[i - 1]), fit)
        slots = np.concatenate([slots, np.full(max(2, counts[i] - len(slots)), -1)])
        parent[scales[i].name] = rng.permutation(slots)[: counts[i]]
    features = {
        f"features_{s.name}": rng.normal(0.2, 1.5, (n, DIM)).astype(np.float32)
        for s, n in zip(scales, counts, strict=True)
    }
    index = nesting_arrays(scales, parent)
    return features | {name: index[name] for name in exported.model.index_names}


def eager(exported: Exported, inputs):
    features = {s.name: torch.from_numpy(inputs[f"features_{s.name}"]) for s in exported.scales}
    index = {name: torch.from_numpy(inputs[name]) for name in exported.model.index_names}
    with torch.inference_mode():
        return exported.model(features, index)


@pytest.mark.parametrize("finest", [1, 7, 513])
def test_the_graph_is_the_model(exported, finest):
    inputs = own_bag(exported, finest, seed=finest)
    got, expected = exported.engine.infer(inputs), eager(exported, inputs)
    assert list(got) == AggregatorGraph(exported.model, 1.0).output_names
    close = {"rtol": 1e-4, "atol": 2e-5}
    assert got["logits"].shape == got["probabilities"].shape == (1, CLASSES)
    np.testing.assert_allclose(got["logits"], expected.logits.numpy(), **close)
    np.testing.assert_allclose(got["bias"], expected.bias.detach().numpy(), **close)
    for scale in exported.scales:
        n = len(inputs[f"features_{scale.name}"])
        attention = got[f"attention_{scale.name}"]
        contribution = got[f"contribution_{scale.name}"]
        assert attention.shape == (1, n)
        assert contribution.shape == (n, CLASSES)
        assert attention.sum() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(attention, expected.attention[scale.name].numpy(), **close)
        np.testing.assert_allclose(contribution, expected.contribution[scale.name].numpy(), **close)


@pytest.mark.parametrize("finest", [1, 7, 513])
def test_contributions_and_bias_add_up_to_the_logits(exported, finest):
    got = exported.engine.infer(own_bag(exported, finest, seed=finest))
    total = got["bias"][0].astype(np.float64)
    for scale in exported.scales:
        total = total + got[f"contribution_{scale.name}"].sum(axis=0, dtype=np.float64)
    np.testing.assert_allclose(total, got["logits"][0], atol=1e-5)


def test_bag_sizes_are_independent_of_each_other(exported):
    """More coarse than fine tiles, and any equal sizes: no size is tied to another."""
    for finest, coarse in ((2, 9), (5, 5), (37, 1), (64, 64)):
        inputs = own_bag(exported, finest, seed=1, coarse=coarse)
        got = exported.engine.infer(inputs)
        np.testing.assert_allclose(got["logits"], eager(exported, inputs).logits, atol=2e-5)


def test_probabilities_are_those_of_the_temperature(exported):
    got = exported.engine.infer(own_bag(exported, 50))
    scaled = np.exp(got["logits"] / TEMPERATURE)
    np.testing.assert_allclose(got["probabilities"], scaled / scaled.sum(), rtol=1e-5)


def test_tensorrt_builds_a_plan_of_it(exported):
    pytest.importorskip("tensorrt_rtx")
    from cmamil_sdk.export.tensorrt import aggregator_profiles, build_plan

    def build():
        return build_plan(
            exported.path,
            lambda inputs: aggregator_profiles(inputs, exported.scales),
            runtime="tensorrt-rtx",
            compute_capabilities=["89"],
        )

    graph = onnx.load(exported.path).graph
    if any(node.op_type == "ScatterElements" for node in all_nodes(graph)):
        with pytest.raises(BundleUnsupported, match="ScatterElements node_scatter_add"):
            build()
        return
    key = build().document.key
    assert list(key.profiles[0]) == [i.name for i in graph.input]


def test_scores_of_attention_between_all_tiles_are_in_blocks(exported):
    """One scan per asking scale, with every softmax over all tiles inside; none where it is nested."""
    graph = onnx.load(exported.path).graph
    scans = [node for node in graph.node if node.op_type == "Scan"]
    to_all = exported.model.cross_attention in ("global", "nested-bias")
    assert len(scans) == (len(exported.scales) if to_all else 0)
    for scan in scans:
        (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
        assert [node.op_type for node in body.node].count("Softmax") == 1


def test_every_axis_of_tiles_is_named_and_nothing_else_is(exported):
    graph = onnx.load(exported.path).graph
    names = [f"features_{s.name}" for s in exported.scales]
    assert [i.name for i in graph.input] == [*names, *exported.model.index_names]
    for value in graph.input:
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param
        assert all(axis.dim_value > 0 for axis in rest)
    (opset,) = [o.version for o in onnx.load(exported.path).opset_import if o.domain == ""]
    assert opset == OPSET
    assert [p.name for p in exported.path.parent.iterdir()] == ["aggregator.onnx"]


def test_the_order_of_tiles_does_not_matter(exported):
    """Permuting the finest tiles, with the indices, permutes their shares and keeps the logits."""
    inputs = own_bag(exported, 40, seed=5)
    finest = exported.scales[-1].name
    order = np.random.default_rng(0).permutation(40)
    shuffled = dict(inputs)
    shuffled[f"features_{finest}"] = inputs[f"features_{finest}"][order]
    for name in exported.model.index_names:
        if name == f"ancestor_{finest}":
            shuffled[name] = inputs[name][order]
        elif name == f"children_{exported.scales[-2].name}":
            back = np.append(np.argsort(order), -1)
            shuffled[name] = back[inputs[name]]
    got, again = exported.engine.infer(inputs), exported.engine.infer(shuffled)
    np.testing.assert_allclose(again["logits"], got["logits"], atol=1e-5)
    key = f"contribution_{finest}"
    np.testing.assert_allclose(again[key], got[key][order], atol=1e-5)


def test_relatives_decide(exported):
    """Without its relatives a bag gets another answer, where the model is nested."""
    inputs = own_bag(exported, 40)
    alone = {n: np.full_like(a, -1) if a.dtype == np.int64 else a for n, a in inputs.items()}
    got, lonely = exported.engine.infer(inputs), exported.engine.infer(alone)
    differs = np.abs(got["logits"] - lonely["logits"]).max() > 1e-3
    assert differs == bool(exported.model.index_names)


def test_arrays_of_different_bags_are_refused(exported):
    if not exported.model.index_names:
        pytest.skip("this variant reads no index arrays")
    inputs = own_bag(exported, 20)
    name = exported.model.index_names[0]
    with pytest.raises(FieldInvalid, match="equally long"):
        exported.engine.infer(inputs | {name: inputs[name][:-1]})


def test_another_temperature_changes_the_probabilities_alone(exported, tmp_path):
    if len(exported.scales) > 1:
        pytest.skip("one variant is enough")
    export_aggregator(exported.model, exported.scales, 1.0, tmp_path / "sharp.onnx")
    inputs = own_bag(exported, 9)
    soft = exported.engine.infer(inputs)
    sharp = load_engine(tmp_path / "sharp.onnx", engine="onnxruntime", device="cpu").infer(inputs)
    for name in sharp:
        assert (sharp[name] == soft[name]).all() == (name != "probabilities"), name
    assert sharp["probabilities"].max() > soft["probabilities"].max() + 0.01
    assert sharp["probabilities"].argmax() == soft["probabilities"].argmax()


class Spoiled:
    """An engine whose answer is changed, as if the graph had come out wrong."""

    def __init__(self, engine: Engine, name: str, change) -> None:
        self.engine, self.name, self.change = engine, name, change

    def infer(self, inputs):
        outputs = self.engine.infer(inputs)
        return outputs | {self.name: self.change(outputs[self.name])}


def with_nan(array):
    array = array.copy()
    array.flat[0] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits", lambda a: a + 0.01),
        ("logits", lambda a: a[:, ::-1]),
        ("probabilities", lambda a: a + 0.01),
        ("bias", lambda a: a * 1.5),
        ("attention_20x", lambda a: a + 0.001),
        ("contribution_20x", lambda a: a + 0.01),
        ("contribution_20x", with_nan),
        ("attention_20x", with_nan),
        ("logits", with_nan),
        ("contribution_20x", lambda a: a[:1]),
    ],
)
def test_a_graph_that_differs_is_refused(tmp_path, monkeypatch, name, change):
    monkeypatch.setattr("cmamil_sdk.export.aggregator.export_graph", lambda *_a, **_k: None)
    monkeypatch.setattr(
        "cmamil_sdk.export.aggregator.load_engine",
        lambda *_a, **_k: Spoiled(EagerEngine(model, scales), name, change),
    )
    scales = parse_scales("20x")
    model = make_model(scales)
    with pytest.raises(ParityFailed, match=r"does not reproduce .* \(gate .*--force|has shape"):
        export_aggregator(model, scales, 1.0, tmp_path / "a.onnx")


class EagerEngine:
    """The eager model behind an engine's interface: a perfect graph."""

    def __init__(self, model, scales) -> None:
        self.module, self.names = AggregatorGraph(model, 1.0).eval(), [s.name for s in scales]

    def infer(self, inputs):
        from cmamil_sdk.export.aggregator import eager_outputs

        return eager_outputs(self.module, inputs)


def test_a_bag_size_that_is_baked_in_is_refused(tmp_path):
    class Baked(torch.nn.Module):
        def forward(self, *tensors):
            return (tensors[0] + torch.ones(37, 4),)

    with pytest.raises(ParityFailed, match="fixed axis 0 of input features_20x"):
        export_graph(
            Baked(),
            (torch.zeros(37, 4),),
            tmp_path / "baked.onnx",
            inputs={"features_20x": {0: torch.export.Dim("n_20x", min=1, max=4096)}},
            outputs=["logits"],
            argument="tensors",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_axis_in_the_file_is_noticed(tmp_path):
    with pytest.raises(ParityFailed, match="fixed axis 0 of input features_20x"):
        from cmamil_sdk.export.graph import _check_dynamic

        value = onnx.helper.make_tensor_value_info("features_20x", onnx.TensorProto.FLOAT, [37, 4])
        node = onnx.helper.make_node("Identity", ["features_20x"], ["y"])
        out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [37, 4])
        graph = onnx.helper.make_graph([node], "g", [value], [out])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "fixed.onnx")
        _check_dynamic(tmp_path / "fixed.onnx", {"features_20x": {0: None}})
