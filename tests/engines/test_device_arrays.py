"""Arrays on a device: used where they lie by engines that take them, refused by all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines import load_engine
from cmamil_sdk.engines.device_array import ArrayView
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.errors import FieldInvalid

from ..device_double import CUPY, OnnxSession
from .graphs import save_graph


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """``y = x + x`` and ``z = -x`` of ``x [n, 4]``."""
    nodes = [("Add", ["x", "x"], ["y"], {}), ("Neg", ["x"], ["z"], {})]
    shape = ("FLOAT", ["n", 4])
    path = tmp_path_factory.mktemp("graph") / "g.onnx"
    return save_graph(path, nodes, {"x": shape}, {"y": shape, "z": shape})


X = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_onnxruntime_gets_the_address_of_what_lies_on_the_device(graph, monkeypatch) -> None:
    session = OnnxSession(graph)
    monkeypatch.setattr("cmamil_sdk.engines.onnxruntime._session", lambda *_: session)
    engine = OnnxRuntimeEngine(graph, device="cuda:2", threads=1, reason="test")
    assert engine.info.takes_device_arrays
    on_device = CUPY.asarray(X)
    address = on_device.__cuda_array_interface__["data"][0]
    found = engine.infer({"x": on_device})
    np.testing.assert_array_equal(found["y"], X + X)
    np.testing.assert_array_equal(found["z"], -X)
    engine.infer({"x": X})
    assert session.bound == [("cuda", 2, address), ("cpu", 0, X.ctypes.data)]
    for wrong in (
        CUPY.asarray(X[:, :3].copy()),
        CUPY.asarray(X.astype(np.float64)),
        CUPY.asarray(X)[:0],
    ):
        with pytest.raises(FieldInvalid, match=r"g\.onnx: input x"):
            engine.infer({"x": wrong})
    with pytest.raises(FieldInvalid, match="not contiguous"):
        engine.infer({"x": CUPY.asarray(np.repeat(X, 2, axis=1))[:, ::2]})
    np.testing.assert_array_equal(engine.infer({"x": on_device})["z"], -X)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_an_engine_on_the_host_refuses_them_and_still_works(graph, name: str) -> None:
    engine = load_engine(graph, engine=name, device="cpu")
    assert not engine.info.takes_device_arrays
    with pytest.raises(FieldInvalid, match=r"g\.onnx: input x does not lie on the host"):
        engine.infer({"x": CUPY.asarray(X)})
    np.testing.assert_array_equal(engine.infer({"x": X})["y"], X + X)


def test_rows_of_a_view_are_the_arrays_rows() -> None:
    view = ArrayView.of(CUPY.asarray(X)).rows(1, 9)
    assert view.shape == (2, 4)
    assert view.nbytes == 32
