"""Loading a bundle: everything in it is verified, and whatever does not hold is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines import EngineInfo, load_engine
from cmamil_sdk.engines.choose import engine_precisions
from cmamil_sdk.engines.parity import ENCODER_GATES
from cmamil_sdk.errors import (
    BundleCorrupt,
    BundleUnsupported,
    EngineMissing,
    FieldInvalid,
    NonFiniteOutput,
    NoTissue,
    ParityFailed,
    RecipeMismatch,
    ScaleMismatch,
    SelfTestFailed,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, write_feature_file
from cmamil_sdk.tiling.recipe import TissueRecipe, parse_scales

PARTS = ("aggregator.bf16.onnx", "aggregator.bf16.products.onnx")
FILES = ("encoder.onnx", "aggregator.onnx", *PARTS, "golden.npz")
needs_bf16 = pytest.mark.skipif(
    "bf16" not in engine_precisions("openvino"), reason="this processor has no bf16 arithmetic"
)


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Bundle:
    return Bundle.load(tiny_bundle, device="cpu")


def change_manifest(root, change) -> None:
    path = root / "manifest.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.unlink()
    path.write_text(json.dumps(document))


def make_bag(dim: int = 1280, scales: str = "5x,10x,20x") -> Bag:
    rng = np.random.default_rng(4)
    counts = {"5x": 2, "10x": 6, "20x": 20, "40x": 3}
    parents = {
        "5x": np.full(2, -1),
        "10x": np.array([0, 0, 0, 1, 1, -1]),
        "20x": np.repeat(np.arange(5), 4),
        "40x": np.array([0, 1, 2]),
    }
    names = [s.name for s in parse_scales(scales)]
    return Bag(
        slide_id="bag",
        scales=parse_scales(scales),
        features={n: rng.normal(size=(counts[n], dim)).astype(np.float32) for n in names},
        coords={n: np.zeros((counts[n], 2), np.int64) for n in names},
        parent={n: parents[n] for n in names},
        tissue={n: np.ones(counts[n], np.float32) for n in names},
    )


def test_a_bundle_says_what_it_is(bundle, tiny_bundle):
    assert bundle.label == "tiny/1"
    assert bundle.manifest.labels == ("benign", "in_situ", "invasive")
    assert bundle.manifest.recipe.names == ("5x", "10x", "20x")
    assert bundle.manifest.index_inputs == ("children_5x", "children_10x", "ancestor_20x")
    assert bundle.engine_label in {row.label for row in bundle.manifest.encoder_parity}
    in_bf16 = bundle.encoder_info.precision == "bf16"
    expected = "openvino-cpu-bf16" if in_bf16 else "onnxruntime-cpu-fp32"
    assert bundle.aggregator_info.label == expected
    assert bundle.warnings == ()
    data = (tiny_bundle / "manifest.json").read_bytes()
    assert bundle.sha256 == hashlib.sha256(data).hexdigest()
    assert {file.name for file in tiny_bundle.iterdir()} == {*FILES, "manifest.json"}
    report = bundle.self_test()
    precision = bundle.encoder_info.precision
    assert report["encoder_cosine"] >= ENCODER_GATES[precision]["cosine_worst"]
    assert report["aggregator_difference"] < 1e-4


def test_aggregating_adds_up(bundle):
    found = bundle.aggregate(make_bag())
    total = found.bias + sum(c.sum(axis=0) for c in found.contribution.values())
    np.testing.assert_allclose(total, found.logits, atol=1e-5)
    scaled = np.exp(found.logits / 1.5)
    np.testing.assert_allclose(found.probabilities, scaled / scaled.sum(), rtol=1e-5)
    assert {n: len(a) for n, a in found.attention.items()} == {"5x": 2, "10x": 6, "20x": 20}
    assert all(a.sum() == pytest.approx(1, abs=1e-5) for a in found.attention.values())


def test_a_bundle_without_explanations(silent_bundle):
    silent = Bundle.load(silent_bundle, device="cpu")
    assert silent.manifest.explanations == ()
    assert (
        silent.manifest.parity.keys() & {"aggregator_attention", "aggregator_contribution"} == set()
    )
    found = silent.aggregate(make_bag())
    assert found.attention is found.contribution is found.bias is None
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    most = 1e-4 if silent.aggregator_info.precision == "fp32" else 1e-2
    assert silent.self_test()["aggregator_difference"] < most


def test_a_manifest_of_version_1_still_loads(copy_of_bundle):
    def before(document) -> None:
        document["schema_version"] = 1
        later_fields = (
            "explanations",
            "encoder_parity",
            "parity_failed",
            "precisions",
            "attention_rows",
        )
        for later in later_fields:
            del document[later]

    change_manifest(copy_of_bundle, before)
    old = Bundle.load(copy_of_bundle, device="cpu")
    assert old.manifest.explanations == ("attention", "contribution")
    assert old.encoder_info.precision == "fp32"
    with pytest.raises(ParityFailed, match="schema version 1 and holds no tiles"):
        Bundle.load(copy_of_bundle, device="cpu", precision="bf16")


def test_explanations_that_the_golden_values_lack(copy_of_bundle, replace_file):
    golden = golden_of(copy_of_bundle)
    del golden["aggregator/out/attention_10x"]
    replace_file("golden.npz", packed(golden), fix_hash=True)
    with pytest.raises(BundleCorrupt, match="promises attention_10x"):
        Bundle.load(copy_of_bundle)


def test_aggregating_takes_the_models_scales_of_a_richer_bag(bundle):
    rich = make_bag(scales="5x,10x,20x,40x")
    poor = rich.select(("5x", "10x", "20x"))
    assert (bundle.aggregate(rich).logits == bundle.aggregate(poor).logits).all()


def test_parents_matter(bundle):
    bag = make_bag()
    orphans = Bag(
        **{**vars(bag), "parent": {n: np.full_like(p, -1) for n, p in bag.parent.items()}}
    )
    assert np.abs(bundle.aggregate(bag).logits - bundle.aggregate(orphans).logits).max() > 1e-4


def test_bags_that_do_not_fit(bundle):
    with pytest.raises(ScaleMismatch, match="5x"):
        bundle.aggregate(make_bag(scales="10x,20x"))
    with pytest.raises(FieldInvalid, match="features_5x"):
        bundle.aggregate(make_bag(dim=512))
    bag = make_bag()
    bag.features["20x"][0, 0] = np.nan
    with pytest.raises(NonFiniteOutput, match="bag"):
        bundle.aggregate(bag)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_any_flipped_byte_is_noticed(copy_of_bundle, replace_file, name, where):
    data = bytearray((copy_of_bundle / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    replace_file(name, bytes(data))
    with pytest.raises(BundleCorrupt, match=name):
        Bundle.load(copy_of_bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_short_or_longer_file(copy_of_bundle, replace_file, name):
    data = (copy_of_bundle / name).read_bytes()
    for changed in (data[:-1], data + b"\0", b""):
        replace_file(name, changed)
        with pytest.raises(BundleCorrupt, match=name):
            Bundle.load(copy_of_bundle)
    (copy_of_bundle / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        Bundle.load(copy_of_bundle)
    (copy_of_bundle / name).mkdir()
    with pytest.raises(BundleCorrupt, match=name):
        Bundle.load(copy_of_bundle)


def test_what_is_no_bundle(tmp_path, tiny_bundle):
    for path in (tmp_path, tmp_path / "none", tiny_bundle / "manifest.json", tmp_path / "nul\0"):
        with pytest.raises(BundleCorrupt):
            Bundle.load(path)


@pytest.mark.parametrize(
    "text", ["", "{", "\xff\xfe", "[" * 100_000, "{'name': 1}", '{"schema_version": 1}']
)
def test_a_manifest_of_garbage(copy_of_bundle, replace_file, text):
    replace_file("manifest.json", text.encode("latin-1"))
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        Bundle.load(copy_of_bundle)


@pytest.mark.parametrize("version", [6, 99, None, "1", 1.5])
def test_a_schema_that_is_not_known(copy_of_bundle, version):
    change_manifest(copy_of_bundle, lambda d: d.update(schema_version=version))
    with pytest.raises(BundleUnsupported, match="schema version"):
        Bundle.load(copy_of_bundle)


def test_a_manifest_that_is_a_list(copy_of_bundle, replace_file):
    replace_file("manifest.json", b"[1]")
    with pytest.raises(BundleUnsupported):
        Bundle.load(copy_of_bundle)


def swap_scales(document) -> None:
    document["recipe"]["scales"].reverse()


def climb(document) -> None:
    document["files"]["../outside"] = document["files"].pop("golden.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(code="import os"),
        lambda d: d.pop("labels"),
        lambda d: d.update(labels=["one"]),
        lambda d: d.update(temperature=0),
        lambda d: d.update(name="../evil"),
        lambda d: d["files"].pop("golden.npz"),
        lambda d: d["files"]["golden.npz"].update(sha256="x"),
        climb,
        swap_scales,
    ],
)
def test_a_manifest_that_makes_no_sense(copy_of_bundle, change):
    change_manifest(copy_of_bundle, change)
    with pytest.raises(BundleCorrupt, match=r"manifest\.json"):
        read_manifest(copy_of_bundle)


def golden_of(root) -> dict[str, np.ndarray]:
    with np.load(root / "golden.npz") as stored:
        return {name: stored[name] for name in stored.files}


def packed(arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def nudge(name: str, by: float):
    def change(golden) -> None:
        golden[name] = golden[name].copy()
        golden[name].flat[-1] += by

    return change


@pytest.mark.parametrize(
    "change",
    [
        nudge("aggregator/out/logits", 0.05),
        nudge("aggregator/out/probabilities", 0.05),
        nudge("aggregator/out/attention_20x", 0.05),
        nudge("aggregator/out/contribution_5x", 0.05),
        nudge("aggregator/out/contribution_20x", np.nan),
        nudge("aggregator/in/features_10x", 30.0),
        lambda g: g.update({"encoder/out/features": np.roll(g["encoder/out/features"], 1, 0)}),
        lambda g: g.update({"encoder/out/features": g["encoder/out/features"] * np.nan}),
        lambda g: g.update({"encoder/in/tiles": 255 - g["encoder/in/tiles"]}),
        lambda g: g.update({"encoder/out/features": g["encoder/out/features"][:2]}),
        lambda g: g.update({"aggregator/out/bias": g["aggregator/out/bias"][:, :1]}),
        lambda g: g.update({"aggregator/out/unknown": g["aggregator/out/bias"]}),
    ],
)
def test_golden_values_that_do_not_reproduce(copy_of_bundle, replace_file, change):
    golden = golden_of(copy_of_bundle)
    change(golden)
    replace_file("golden.npz", packed(golden), fix_hash=True)
    with pytest.raises(SelfTestFailed, match="golden"):
        Bundle.load(copy_of_bundle)


def test_golden_files_that_hold_none(copy_of_bundle, replace_file, tiny_bundle):
    golden = golden_of(tiny_bundle)
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}]), allow_pickle=True)
    few = {name: golden[name] for name in golden if not name.startswith("aggregator/out")}
    for data in (
        b"",
        b"garbage",
        b"PK\x03\x04garbage",
        packed({}),
        packed(few),
        objects.getvalue(),
    ):
        replace_file("golden.npz", data, fix_hash=True)
        with pytest.raises(BundleCorrupt, match=r"golden\.npz"):
            Bundle.load(copy_of_bundle)


@pytest.mark.parametrize("name", ["encoder.onnx", "aggregator.onnx"])
def test_a_graph_of_garbage_with_the_right_hash(copy_of_bundle, replace_file, name):
    replace_file(name, b"garbage" * 50, fix_hash=True)
    with pytest.raises(BundleUnsupported, match=name):
        Bundle.load(copy_of_bundle, engine="onnxruntime", device="cpu")


@needs_bf16
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_garbage_leave_the_aggregator_in_fp32(copy_of_bundle, replace_file, name):
    replace_file(name, b"garbage" * 50, fix_hash=True)
    info = Bundle.load(copy_of_bundle, precision="bf16", allow_failed_parity=True).aggregator_info
    assert info.label == "onnxruntime-cpu-fp32"
    assert f"{name} cannot be run" in info.reason


def test_graphs_in_each_others_place(copy_of_bundle, replace_file, tiny_bundle):
    replace_file("encoder.onnx", (tiny_bundle / "aggregator.onnx").read_bytes(), fix_hash=True)
    with pytest.raises((SelfTestFailed, BundleCorrupt, BundleUnsupported, FieldInvalid)):
        Bundle.load(copy_of_bundle)


def test_the_engine_asked_for_is_the_one_used(tiny_bundle):
    from cmamil_sdk.engines.onnxruntime import cuda_available

    with pytest.raises(FieldInvalid):
        Bundle.load(tiny_bundle, engine="magic")
    if not cuda_available():
        with pytest.raises(EngineMissing):
            Bundle.load(tiny_bundle, device="cuda:0")


def test_features_of_another_recipe_are_refused(bundle, tmp_path):
    manifest = bundle.manifest

    def provenance(**changes) -> FeatureProvenance:
        fields = {
            "slide_id": "s7",
            "slide_sha256": "a" * 64,
            "width": 10,
            "height": 10,
            "mpp": 0.25,
            "mpp_source": "override",
            "reader": "openslide",
            "recipe": manifest.recipe,
            "encoder": manifest.encoder,
            "engine": "another-engine",
        }
        return FeatureProvenance.model_validate(fields | changes)

    scales = manifest.recipe.scales
    n = {"5x": 1, "10x": 2, "20x": 4}
    rng = np.random.default_rng(0)
    bag = Bag(
        slide_id="s7",
        scales=scales,
        features={k: rng.random((m, 1280), np.float32) for k, m in n.items()},
        coords={k: np.zeros((m, 2), np.int64) for k, m in n.items()},
        parent={k: np.full(m, -1 if k == "5x" else 0, np.int64) for k, m in n.items()},
        tissue={k: np.ones(m, np.float32) for k, m in n.items()},
    )
    path = tmp_path / "s7.h5"
    write_feature_file(path, bag, provenance())
    found = bundle.aggregate_file(path)
    np.testing.assert_array_equal(found.logits, bundle.aggregate(bag).logits)
    others = [
        {"recipe": manifest.recipe.model_copy(update={"tissue": TissueRecipe(min_share=0.5)})}
    ]
    others += [{"recipe": manifest.recipe.model_copy(update={"scale_source": "stored"})}]
    others += [{"encoder": manifest.encoder.model_copy(update={"weights_sha256": "0" * 64})}]
    for changes in others:
        write_feature_file(path, bag, provenance(**changes))
        with pytest.raises(RecipeMismatch, match="s7"):
            bundle.aggregate_file(path)


def test_a_bag_without_tiles_has_no_answer(bundle):
    names = bundle.manifest.recipe.names
    bag = Bag(
        slide_id="glass",
        scales=bundle.manifest.recipe.scales,
        features={n: np.zeros((0, 1280), np.float32) for n in names},
        coords={n: np.zeros((0, 2), np.int64) for n in names},
        parent={n: np.zeros(0, np.int64) for n in names},
        tissue={n: np.zeros(0, np.float32) for n in names},
    )
    with pytest.raises(NoTissue, match="glass"):
        bundle.aggregate(bag)


def test_a_bundle_that_failed_at_export_is_refused_unless_told(copy_of_bundle):
    why = "the encoder's cosine worst 0.900000 (gate 0.99999)"
    change_manifest(copy_of_bundle, lambda d: d.update(parity_failed=why))
    with pytest.raises(ParityFailed, match=r"exported with --force .*0\.900000.*--allow-failed"):
        Bundle.load(copy_of_bundle)
    accepted = Bundle.load(copy_of_bundle, allow_failed_parity=True)
    assert accepted.warnings == (f"The bundle was exported although {why}.",)
    assert accepted.self_test()["aggregator_difference"] < 2e-3


def spoil_encoder(golden) -> None:
    """Expected features that differ by as much as a bad precision's would."""
    features = golden["encoder/out/features"]
    features += np.random.default_rng(0).normal(0, 0.3 * features.std(axis=0), features.shape)


def test_allowing_a_failed_gate_does_not_allow_other_golden_values(copy_of_bundle, replace_file):
    golden = golden_of(copy_of_bundle)
    spoil_encoder(golden)
    replace_file("golden.npz", packed(golden), fix_hash=True)
    with pytest.raises(SelfTestFailed, match="golden"):
        Bundle.load(copy_of_bundle, allow_failed_parity=True)


@pytest.fixture
def rough_bf16(monkeypatch):
    """As on a processor whose bf16 is bad for this encoder; here it is fp32 with noise."""
    from cmamil_sdk.engines import gated

    real = load_engine

    class Rough:
        def __init__(self, exact) -> None:
            self.exact = exact
            self.info = dataclasses.replace(exact.info, precision="bf16")

        def infer(self, inputs):
            features = self.exact.infer(inputs)["features"]
            noise = np.random.default_rng(0).normal(0, 0.3 * features.std(axis=0), features.shape)
            return {"features": (features + noise).astype(np.float32)}

        def close(self) -> None:
            self.exact.close()

    def load(graph, *, precision="fp32", **options):
        exact = real(graph, **options)
        return Rough(exact) if precision == "bf16" else exact

    monkeypatch.setattr(gated, "load_engine", load)
    monkeypatch.setattr(gated, "engine_precisions", lambda *_: ("fp32", "bf16"))
    monkeypatch.setattr("cmamil_sdk.bundle.load.load_engine", load)


@pytest.mark.usefixtures("rough_bf16")
def test_a_precision_that_fails_on_this_machine(tiny_bundle):
    automatic = Bundle.load(tiny_bundle, device="cpu")
    assert automatic.encoder_info.precision == "fp32"
    assert "bf16 misses the gate: " in automatic.encoder_info.reason
    assert automatic.warnings == ()
    with pytest.raises(ParityFailed, match="centred cosine worst"):
        Bundle.load(tiny_bundle, device="cpu", precision="bf16")
    accepted = Bundle.load(tiny_bundle, device="cpu", precision="bf16", allow_failed_parity=True)
    (warning,) = accepted.warnings
    assert "cpu-bf16 misses its gate: " in warning
    assert accepted.open_encoder().info.precision == "bf16"


def test_the_encoder_that_was_tested_is_handed_out_once(tiny_bundle, monkeypatch):
    loaded = []

    def counted(graph, **options):
        loaded.append(graph.name.partition(".")[0])
        return load_engine(graph, **options)

    for place in (
        "cmamil_sdk.engines.gated",
        "cmamil_sdk.bundle.aggregator",
        "cmamil_sdk.bundle.load",
    ):
        monkeypatch.setattr(f"{place}.load_engine", counted)

    def load():
        loaded.clear()
        return Bundle.load(tiny_bundle, engine="onnxruntime", device="cpu", callers=2)

    bundle = load()
    first = bundle.open_encoder(callers=2)
    assert loaded == ["encoder", "aggregator"]
    assert first.info == bundle.encoder_info
    second = bundle.open_encoder(callers=2)
    assert loaded == ["encoder", "aggregator", "encoder"]
    second.close()
    first.infer({"tiles": np.zeros((1, 224, 224, 3), np.uint8)})
    load().open_encoder(callers=1)
    assert loaded == ["encoder", "aggregator", "encoder"], "made for another number of callers"
    bundle = load()
    bundle.release_encoder()
    bundle.release_encoder()
    bundle.open_encoder(callers=2)
    assert loaded == ["encoder", "aggregator", "encoder"]


def test_tensorrt_runs_both_graphs_and_only_if_named(tiny_bundle, tmp_path, monkeypatch):
    """With plans that onnxruntime stands in for."""
    opened = []

    def open_plan(graph, *, runtime, device, precision, engine_cache, reason, hashes):
        opened.append((graph.name, runtime, device, precision, engine_cache))
        assert graph.name in hashes
        engine = load_engine(graph, engine="onnxruntime", device="cpu")
        engine.info = EngineInfo(runtime, device, precision, "9.9", reason or "asked for, plan 1")
        return engine

    monkeypatch.setattr("cmamil_sdk.engines.tensorrt.open_tensorrt", open_plan)
    bundle = Bundle.load(tiny_bundle, engine="tensorrt-rtx", engine_cache=tmp_path)
    assert bundle.aggregator_info.label == bundle.engine_label == "tensorrt-rtx-cuda-fp32"
    why = "asked for, plan 1; fp32, tensorrt-rtx has no bf16"
    assert bundle.open_encoder().info.reason == bundle.encoder_info.reason == why
    how = ("tensorrt-rtx", "cuda:0", "fp32", tmp_path)
    assert opened == [(graph, *how) for graph in ("encoder.onnx", "aggregator.onnx")]
    assert "tensorrt" not in Bundle.load(tiny_bundle).engine_label
    assert len(opened) == 2
