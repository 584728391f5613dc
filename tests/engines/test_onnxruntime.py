"""Engines: what was asked for or an error, never something else in silence."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import available_engines, load_engine
from cmamil_sdk.engines.base import TENSORRT
from cmamil_sdk.engines.onnxruntime import cuda_available
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid

from .graphs import save_graph


@pytest.fixture(scope="module")
def gather(tmp_path_factory) -> Path:
    """``y = x[i] @ x^T`` of ``x [n, 4]`` and ``i [n, 2]``, with n the same for both."""
    return save_graph(
        tmp_path_factory.mktemp("graph") / "gather.onnx",
        [
            ("Gather", ["x", "i"], ["g"], {"axis": 0}),
            ("Transpose", ["x"], ["t"], {"perm": [1, 0]}),
            ("MatMul", ["g", "t"], ["y"], {}),
        ],
        {"x": ("FLOAT", ["n", 4]), "i": ("INT64", ["n", 2])},
        {"y": ("FLOAT", ["n", 2, "n"])},
    )


def feeds(n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "x": rng.normal(size=(n, 4)).astype(np.float32),
        "i": rng.integers(0, n, (n, 2)),
    }


def test_it_computes(gather):
    engine = load_engine(gather)
    for n in (1, 5, 300):
        inputs = feeds(n)
        expected = inputs["x"][inputs["i"]] @ inputs["x"].T
        np.testing.assert_allclose(engine.infer(inputs)["y"], expected, rtol=1e-5, atol=1e-5)
    assert engine.info.name == "onnxruntime"
    assert engine.info.version
    engine.close()


def test_the_reason_for_a_choice_is_told(gather):
    asked = load_engine(gather, engine="onnxruntime", device="cpu").info
    assert (asked.device, asked.reason, asked.label) == ("cpu", "asked for", "onnxruntime-cpu-fp32")
    chosen = load_engine(gather).info
    assert chosen.reason.startswith("auto")
    if not cuda_available():
        assert chosen.device == "cpu"
        assert "CUDA" in chosen.reason


@pytest.mark.parametrize("name", ["tensorflow", "", "ONNXRUNTIME", "pytorch"])
def test_an_unknown_engine(gather, name):
    with pytest.raises(FieldInvalid, match="--engine"):
        load_engine(gather, engine=name)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:0\n", "CPU", "mps"])
def test_an_unknown_device(gather, device):
    with pytest.raises(FieldInvalid, match="--device"):
        load_engine(gather, device=device)


@pytest.mark.skipif(cuda_available(), reason="this machine has the CUDA provider")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_where_there_is_none_is_an_error_not_the_cpu(gather, device):
    with pytest.raises(EngineMissing, match="--device cpu"):
        load_engine(gather, device=device)


def test_a_session_that_started_elsewhere_is_refused(gather, monkeypatch):
    """As if the CUDA provider were compiled in and the runtime then fell back to the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def fall_back(path, options, providers):
        ((provider, settings),) = providers
        assert provider == "CUDAExecutionProvider"
        assert (settings["device_id"], settings["use_tf32"]) == ("3", "0")
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr("cmamil_sdk.engines.onnxruntime.cuda_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(EngineMissing, match="did not start on cuda:3"):
        load_engine(gather, device="cuda:3")


def bad_inputs():
    good = feeds()
    return {
        "dtype": good | {"x": good["x"].astype(np.float64)},
        "int32 index": good | {"i": good["i"].astype(np.int32)},
        "byte order": good | {"x": good["x"].astype(">f4")},
        "rank": good | {"x": good["x"][0]},
        "width": good | {"x": good["x"][:, :3]},
        "no tiles": {"x": good["x"][:0], "i": good["i"][:0]},
        "unknown": good | {"z": good["x"]},
        "missing": {"x": good["x"]},
        "unequal": good | {"i": good["i"][:4]},
        "index too large": good | {"i": np.full((5, 2), 5)},
        "index too small": good | {"i": np.full((5, 2), -6)},
    }


@pytest.mark.parametrize("case", bad_inputs())
def test_inputs_that_do_not_fit_are_refused_and_the_engine_still_works(gather, case):
    engine = load_engine(gather)
    before = engine.infer(feeds())["y"]
    with pytest.raises(FieldInvalid, match=r"gather\.onnx"):
        engine.infer(bad_inputs()[case])
    assert (engine.infer(feeds())["y"] == before).all()


def test_arrays_that_are_views_are_read_right(gather):
    engine, inputs = load_engine(gather), feeds(6)
    wide = np.repeat(inputs["x"], 2, axis=0)
    view = {"x": wide[::2], "i": np.asfortranarray(inputs["i"])}
    assert (engine.infer(view)["y"] == engine.infer(inputs)["y"]).all()


def test_files_that_are_no_graphs(tmp_path):
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "garbage.onnx").write_bytes(b"garbage" * 99)
    for path in (tmp_path / "empty.onnx", tmp_path / "garbage.onnx", tmp_path, tmp_path / "none"):
        with pytest.raises(BundleUnsupported, match="export the model again"):
            load_engine(path)


def test_a_graph_of_types_no_model_has(tmp_path):
    path = save_graph(
        tmp_path / "double.onnx",
        [("Identity", ["x"], ["y"], {})],
        {"x": ("DOUBLE", ["n"])},
        {"y": ("DOUBLE", ["n"])},
    )
    with pytest.raises(BundleUnsupported, match="input x"):
        load_engine(path)


def test_an_operator_the_runtime_does_not_know(tmp_path):
    path = save_graph(
        tmp_path / "future.onnx",
        [("NoSuchOperator", ["x"], ["y"], {})],
        {"x": ("FLOAT", ["n"])},
        {"y": ("FLOAT", ["n"])},
    )
    with pytest.raises(BundleUnsupported, match=r"future\.onnx"):
        load_engine(path)


def test_threads_at_once_get_the_same_bits(tiny_bundle):
    engine = load_engine(tiny_bundle / "encoder.onnx", engine="onnxruntime", device="cpu")
    rng = np.random.default_rng(0)
    inputs = [rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8) for n in (1, 2, 3, 2)]
    alone = [engine.infer({"tiles": tiles})["features"] for tiles in inputs]
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
    assert (alone[1][:1] == engine.infer({"tiles": inputs[1][:1]})["features"]).all()


def test_what_is_available_is_told():
    found = available_engines()
    assert list(found) == ["onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx"]
    for name, about in found.items():
        assert about["available"] is True or name in TENSORRT
        assert set(about) == {"available", "version", "why", "fix"}
