"""OpenVINO: the precision asked for or an error, the same bits for everyone, nothing sent anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import available_engines, available_precisions, load_engine
from cmamil_sdk.engines import openvino as module
from cmamil_sdk.engines.gated import open_encoder
from cmamil_sdk.engines.openvino import OpenVinoEngine, precisions
from cmamil_sdk.engines.parity import EncoderReference, measure_encoder
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid

from .graphs import save_graph


@pytest.fixture(scope="module")
def brightness(tmp_path_factory) -> Path:
    """``features = mean over height and width`` of tiles ``[n, 8, 8, 3]`` uint8."""
    return save_graph(
        tmp_path_factory.mktemp("graph") / "brightness.onnx",
        [
            ("Cast", ["tiles"], ["x"], {"to": 1}),
            ("Constant", [], ["axes"], {"value_ints": [1, 2]}),
            ("ReduceMean", ["x", "axes"], ["features"], {"keepdims": 0}),
        ],
        {"tiles": ("UINT8", ["n", 8, 8, 3])},
        {"features": ("FLOAT", ["n", 3])},
    )


def tiles(n: int = 5) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def load(graph: Path, **options) -> OpenVinoEngine:
    return load_engine(graph, engine="openvino", **options)


def test_it_computes_and_says_what_is_in_use(brightness):
    engine = load(brightness)
    for n in (1, 5, 300):
        got = engine.infer({"tiles": tiles(n)})["features"]
        np.testing.assert_allclose(got, tiles(n).mean(axis=(1, 2)), rtol=1e-5)
    assert engine.info.label == "openvino-cpu-fp32"
    assert engine.info.version.count(".") == 2
    assert engine.info.reason == "asked for"
    engine.close()


def test_auto_takes_it_on_an_x86_processor(brightness, monkeypatch):
    monkeypatch.setattr("cmamil_sdk.engines.choose._cuda", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    chosen = load_engine(brightness).info
    assert chosen.name == "openvino"
    assert "x86" in chosen.reason
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    elsewhere = load_engine(brightness).info
    assert (elsewhere.name, "aarch64" in elsewhere.reason) == ("onnxruntime", True)


def test_auto_goes_on_with_onnxruntime_where_openvino_cannot_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("cmamil_sdk.engines.choose._cuda", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    two = save_graph(
        tmp_path / "two.onnx",
        [("Add", ["x", "y"], ["z"], {})],
        {"x": ("FLOAT", ["n"]), "y": ("FLOAT", ["n"])},
        {"z": ("FLOAT", ["n"])},
    )
    info = load_engine(two).info
    assert info.name == "onnxruntime"
    assert info.reason.endswith(
        "but two.onnx has 2 inputs, openvino runs graphs of one, which encoders are"
    )
    with pytest.raises(BundleUnsupported, match="--engine onnxruntime"):
        load(two)


def encoder(path: Path, *nodes: tuple) -> Path:
    """``nodes`` make ``c [n, 8, 8, 3]`` of tiles ``f`` in float32; features are its means."""
    return save_graph(
        path,
        [
            ("Cast", ["tiles"], ["f"], {"to": 1}),
            *nodes,
            ("Constant", [], ["axes"], {"value_ints": [1, 2]}),
            ("ReduceMean", ["c", "axes"], ["features"], {"keepdims": 0}),
        ],
        {"tiles": ("UINT8", ["n", 8, 8, 3])},
        {"features": ("FLOAT", ["n", 3])},
    )


def test_an_encoder_that_openvino_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr("cmamil_sdk.engines.choose._why_no_openvino", lambda: None)
    monkeypatch.setattr("cmamil_sdk.engines.choose._cuda", lambda: False)
    graph = encoder(
        tmp_path / "cut.onnx",
        ("SplitToSequence", ["f"], ["parts"], {"axis": 0}),
        ("ConcatFromSequence", ["parts"], ["c"], {"axis": 0}),
    )

    reference = EncoderReference(tiles(), tiles().mean(axis=(1, 2), dtype=np.float32))
    measure = partial(measure_encoder, reference=reference)
    found = open_encoder(graph, measure).engine.info
    assert found.label == "onnxruntime-cpu-fp32"
    assert "openvino is installed, x86 processor, but cut.onnx cannot be run by" in found.reason
    for precision in ("auto", "fp32"):
        with pytest.raises(BundleUnsupported, match=r"SplitToSequence.*use --engine onnxruntime"):
            open_encoder(graph, measure, engine="openvino", precision=precision)


def test_shapes_that_depend_on_what_is_in_the_tiles(tmp_path):
    graph = encoder(
        tmp_path / "graph.onnx",
        ("NonZero", ["f"], ["places"], {}),
        ("Cast", ["places"], ["numbers"], {"to": 1}),
        ("ReduceMean", ["numbers"], ["mean"], {"keepdims": 0}),
        ("Add", ["f", "mean"], ["c"], {}),
    )
    engine, other = load(graph), load_engine(graph, engine="onnxruntime", device="cpu")
    for n in (1, 5, 21):
        got, expected = (each.infer({"tiles": tiles(n)})["features"] for each in (engine, other))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_it_has_no_gpu(brightness, device):
    with pytest.raises(EngineMissing, match="--device cpu"):
        load(brightness, device=device)


@pytest.mark.skipif("bf16" in precisions(), reason="this processor has bf16 arithmetic")
def test_bf16_where_there_is_none_is_an_error_and_not_fp32(brightness):
    with pytest.raises(EngineMissing, match="--precision fp32"):
        load(brightness, precision="bf16")
    told = available_precisions()["bf16"]
    assert told["available"] is False
    assert told["why"]
    assert told["fix"]


@pytest.mark.skipif("bf16" not in precisions(), reason="this processor has no bf16 arithmetic")
def test_bf16_is_in_use_where_it_is_asked_for(tiny_bundle):
    rough = load(tiny_bundle / "encoder.onnx", precision="bf16")
    assert rough.info.label == "openvino-cpu-bf16"
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    exact = load(tiny_bundle / "encoder.onnx").infer({"tiles": pixels})["features"]
    found = rough.infer({"tiles": pixels})["features"]
    assert 1e-4 < np.abs(found - exact).max() < 1


def test_a_precision_that_the_runtime_exchanges_is_noticed(brightness, monkeypatch):
    """As if the processor had bf16 and the compiled graph did not use it."""
    monkeypatch.setattr(module, "precisions", lambda: ("fp32", "bf16"))
    monkeypatch.setattr(module, "_precision_in_use", lambda _compiled: "fp32")
    with pytest.raises(EngineMissing, match="in fp32 here and not in bf16"):
        load(brightness, precision="bf16")


@pytest.mark.parametrize("precision", ["fp8", "", "BF16", "auto"])
def test_an_unknown_precision(brightness, precision):
    with pytest.raises(FieldInvalid, match="--precision"):
        load(brightness, precision=precision)


def test_onnxruntime_has_no_bf16(brightness):
    with pytest.raises(EngineMissing, match="--engine openvino"):
        load_engine(brightness, engine="onnxruntime", precision="bf16")


BAD_INPUTS = {
    "dtype": {"tiles": tiles().astype(np.float32)},
    "rank": {"tiles": tiles()[0]},
    "height": {"tiles": tiles()[:, :5]},
    "no tiles": {"tiles": tiles()[:0]},
    "unknown": {"tiles": tiles(), "z": tiles()},
    "missing": {},
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused_and_the_engine_still_works(brightness, case):
    engine = load(brightness)
    before = engine.infer({"tiles": tiles()})["features"]
    with pytest.raises(FieldInvalid, match=r"brightness\.onnx"):
        engine.infer(BAD_INPUTS[case])
    assert (engine.infer({"tiles": tiles()})["features"] == before).all()


def test_arrays_that_are_views_are_read_right_and_results_are_the_callers_own(brightness):
    engine = load(brightness)
    whole = engine.infer({"tiles": tiles(6)})["features"]
    kept = whole.copy()
    view = engine.infer({"tiles": np.repeat(tiles(6), 2, axis=0)[::2]})["features"]
    engine.infer({"tiles": tiles(6)[::-1]})
    assert (view == kept).all()
    assert (whole == kept).all()


def test_files_that_are_no_graphs(tmp_path):
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 99)
    for path in (tmp_path / "empty.onnx", tmp_path / "garbage.onnx", tmp_path, tmp_path / "none"):
        with pytest.raises(BundleUnsupported, match="export the model again"):
            load(path)


@pytest.mark.parametrize("callers", [1, 2])
def test_threads_at_once_and_batches_of_any_size_get_the_same_bits(tiny_bundle, callers):
    engine = load(tiny_bundle / "encoder.onnx", callers=callers)
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8) for n in (1, 2, 9, 8)]
    alone = [engine.infer({"tiles": pixels})["features"] for pixels in inputs]
    together: list[np.ndarray | None] = [None] * len(inputs)
    start = threading.Barrier(len(inputs))

    def run(position: int) -> None:
        start.wait()
        together[position] = engine.infer({"tiles": inputs[position]})["features"]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, got in zip(alone, together, strict=True):
        assert got is not None
        assert (got == expected).all()
    one_by_one = [engine.infer({"tiles": tile[None]})["features"] for tile in inputs[2]]
    assert (alone[2] == np.concatenate(one_by_one)).all()


def test_the_package_that_reports_use_is_not_loaded(brightness):
    program = (
        "import sys; from cmamil_sdk.engines import load_engine; from pathlib import Path\n"
        "assert load_engine(Path(sys.argv[1]), engine='openvino').info.name == 'openvino'\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(brightness)], check=True, timeout=120)


def test_what_is_available_is_told():
    about = available_engines()["openvino"]
    assert about["available"] is True
    assert "fp32" in str(about["why"])
    assert ("bf16" in str(about["why"])) == ("bf16" in precisions())
    assert str(available_precisions()["fp32"]["why"]).startswith("by onnxruntime, openvino")


def test_a_machine_without_it(monkeypatch, brightness):
    """As where the package is not installed: the module's own import fails."""
    monkeypatch.delitem(sys.modules, "cmamil_sdk.engines.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("cmamil_sdk.engines.choose._cuda", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    about = available_engines()["openvino"]
    assert (about["available"], about["fix"]) == (False, "install cmamil-sdk[cpu].")
    assert available_precisions()["bf16"]["fix"] == "install cmamil-sdk[cpu]"
    assert (
        load_engine(brightness).info.reason == "auto: no CUDA provider, openvino is not installed"
    )
    with pytest.raises(EngineMissing, match="openvino is not installed"):
        load(brightness)
