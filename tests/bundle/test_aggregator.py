"""Which engine and precision a bundle's aggregator gets, and why not another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.bundle import Bundle, aggregator
from cmamil_sdk.bundle.aggregator import aggregator_differences, open_aggregator
from cmamil_sdk.bundle.golden import GOLDEN_MAX_DIFFERENCE, Golden, read_golden
from cmamil_sdk.bundle.manifest import Manifest
from cmamil_sdk.bundle.precisions import PrecisionReport
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines import Engine, EngineInfo
from cmamil_sdk.engines.choose import engine_precisions
from cmamil_sdk.engines.split import SplitEngine
from cmamil_sdk.errors import FieldInvalid

needs_bf16 = pytest.mark.skipif(
    "bf16" not in engine_precisions("openvino"), reason="this processor has no bf16 arithmetic"
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)[0]


@pytest.fixture(scope="module")
def golden(tiny_bundle: Path, manifest: Manifest) -> Golden:
    return read_golden(tiny_bundle, manifest)


def opened(root: Path, manifest: Manifest, golden: Golden, encoder: str = "bf16") -> Engine:
    name = "onnxruntime" if encoder == "fp32" else "openvino"
    return open_aggregator(root, manifest, EngineInfo(name, "cpu", encoder, "1", "x"), golden)


@needs_bf16
def test_it_is_in_bf16_with_such_an_encoder(
    tiny_bundle: Path, manifest: Manifest, golden: Golden
) -> None:
    engine = opened(tiny_bundle, manifest, golden)
    assert engine.info.label == "openvino-cpu-bf16"
    assert engine.info.reason.startswith("bf16 as the encoder")
    assert golden.aggregator_difference(engine.infer(golden.inputs)) < 1e-4, "its tiles are few"
    assert isinstance(engine, SplitEngine)
    difference = golden.aggregator_difference(engine.infer_rounded(golden.inputs))
    assert 1e-4 < difference <= GOLDEN_MAX_DIFFERENCE["bf16"]
    differences = aggregator_differences(tiny_bundle, manifest, golden)
    assert differences.keys() == {"onnxruntime-cpu-fp32", "openvino-cpu-bf16"}
    assert differences["openvino-cpu-bf16"] == difference


@pytest.mark.parametrize("encoder", ["fp32", "int8"])
def test_it_is_in_fp32_with_other_encoders(
    tiny_bundle: Path, manifest: Manifest, golden: Golden, encoder: str
) -> None:
    info = opened(tiny_bundle, manifest, golden, encoder).info
    assert (info.label, info.reason) == (
        "onnxruntime-cpu-fp32",
        f"fp32, with an encoder in {encoder}",
    )


@needs_bf16
def test_why_it_stays_in_fp32(
    tiny_bundle: Path, manifest: Manifest, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(of: Manifest = manifest) -> str:
        info = opened(tiny_bundle, of, golden).info
        assert info.label == "onnxruntime-cpu-fp32"
        return info.reason

    missed = PrecisionReport(precision="bf16", graphs=(), aggregator={"aggregator_logits": 0.5})
    known = manifest.model_copy(update={"precisions": (missed,)})
    assert reason(known) == (
        "fp32, in bf16 it missed its gate at export: aggregator logits 0.5 (gate 0.01)"
    )
    with monkeypatch.context() as patch:
        patch.setattr(aggregator, "GOLDEN_MAX_DIFFERENCE", {"bf16": 0.0})
        assert "it differs from its golden values by" in reason()
    files = {name: entry for name, entry in manifest.files.items() if "bf16" not in name}
    without = manifest.model_copy(update={"files": files})
    assert reason(without) == (
        "fp32, in bf16 it would gain nothing, as it multiplies no wide features"
    )
    older = without.model_copy(update={"schema_version": 4})
    assert reason(older) == (
        "fp32, in bf16 it has no parts for it, as its bundle is of schema version 4"
    )


@needs_bf16
def test_parts_that_do_not_take_the_golden_bag(
    tiny_bundle: Path, manifest: Manifest, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_engine: SplitEngine, _inputs: object) -> None:
        raise FieldInvalid("aggregator.onnx: input features_2x is missing; give all inputs.")

    monkeypatch.setattr(SplitEngine, "infer_rounded", refuse)
    info = opened(tiny_bundle, manifest, golden).info
    assert info.reason == "fp32, in bf16 aggregator.onnx: input features_2x is missing"
    assert aggregator_differences(tiny_bundle, manifest, golden).keys() == {"onnxruntime-cpu-fp32"}


@needs_bf16
def test_a_bundle_answers_alike_in_bf16_and_fp32(tiny_bundle: Path, golden: Golden) -> None:
    bundle = Bundle.load(tiny_bundle, device="cpu")
    if bundle.encoder_info.precision != "bf16":
        pytest.skip("its encoder misses the gate of bf16")
    assert bundle.aggregator_info.label == "openvino-cpu-bf16"
    assert bundle.self_test()["aggregator_difference"] <= GOLDEN_MAX_DIFFERENCE["bf16"]
    exact = Bundle.load(tiny_bundle, device="cpu", precision="fp32")
    assert exact.aggregator_info.label == "onnxruntime-cpu-fp32"
    assert np.isfinite([*bundle.aggregator_differences().values()]).all()
