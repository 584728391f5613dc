"""Small graphs, and an engine that is as exact as a test wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmamil_sdk.engines.base import EngineInfo


def save_graph(path: Path, nodes, inputs, outputs) -> Path:
    """``inputs`` and ``outputs``: name -> (ONNX type name, shape)."""
    onnx = pytest.importorskip("onnx")

    def values(named):
        return [
            onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)
            for name, (kind, shape) in named.items()
        ]

    made = [
        onnx.helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes
    ]
    graph = onnx.helper.make_graph(made, "test", values(inputs), values(outputs))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


class RoughEngine:
    """An engine that answers with features of its own."""

    def __init__(self, features: np.ndarray, precision: str, name: str = "openvino") -> None:
        self.features, self.closed, self._row = features, False, 0
        self.info = EngineInfo(name, "cpu", precision, "1", "a test")

    def infer(self, inputs):
        rows = self.features[self._row : self._row + len(inputs["tiles"])]
        self._row += len(rows)
        return {"features": rows}

    def close(self) -> None:
        self.closed = True
