"""A graph in mixed float16: layers and what lies between them in half, all else in float32.

In float32 stay inputs and outputs, preprocessing, attention's softmax and every sum that it weighs,
pooling, normalisation, and narrow layers, which are classifiers: they decide, and cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from cmamil_sdk.files import write_atomic

from .graph import inputs_of, preprocessing_of, with_precision

LEAST_WIDTH = 32
"""Layers with fewer outputs stay in float32."""

_LAYERS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_SHAPING = frozenset(
    [
        *("Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "MaxPool", "Pad"),
        *("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    ]
)
_BETWEEN = _SHAPING | {
    *("Add", "Clip", "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul"),
    *("Neg", "PRelu", "Relu", "Sigmoid", "Sub", "Tanh"),
}
"""Computed in half where all that they take is."""

_LARGEST = float(np.finfo(np.float16).max)


def write_half(graph: Path, path: Path) -> None:
    """Write the graph of ``graph`` in mixed float16 to ``path``; it takes and gives the same types."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    _Mixed(model.graph).convert()
    with_precision(model, "fp16")
    write_atomic(path, model.SerializeToString())


class _Mixed:
    """Conversion of one graph, node by node.

    A float32 tensor keeps its name, and its half has another, so that nodes in float32 and subgraphs
    stay as they are. Either is made from the other where it is first wanted.
    """

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._constants = dict(_float_constants(graph))
        self._floats = _float_tensors(graph) | self._constants.keys()
        self._whole = {port.name for port in graph.input} | self._constants.keys()
        self._halves: dict[str, str] = {}
        self._computed_in_half: set[str] = set()
        self._weighing: set[str] = set()
        self._nodes: list[NodeProto] = []

    def convert(self) -> None:
        """Rewrite the graph in place."""
        graph = self._graph
        first = {node.output[0] for node in preprocessing_of(graph)}
        for node in list(graph.node):
            if node.output[0] not in first and self._belongs_in_half(node):
                self._add_in_half(node)
            else:
                self._add_in_float(node)
            self._note_weights(node)
        for port in graph.output:
            self._want_whole(port.name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        used = {name for node in graph.node for name in inputs_of(node)}
        used |= {port.name for port in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _belongs_in_half(self, node: NodeProto) -> bool:
        taken = [name for name in node.input if name in self._floats]
        constants = [self._constants[name] for name in taken if name in self._constants]
        others = [name for name in taken if name not in self._constants]
        if node.domain or not others or not {*node.output} <= self._floats:
            return False
        if any(np.abs(values).max(initial=0.0) > _LARGEST for values in constants):
            return False
        if node.op_type in _LAYERS:
            if not self._weighing.isdisjoint(others):
                return False
            has_weights = any(values.ndim > 1 for values in constants)
            return not has_weights or _width(node, self._constants) >= LEAST_WIDTH
        return node.op_type in _BETWEEN and {*others} <= self._computed_in_half

    def _note_weights(self, node: NodeProto) -> None:
        """What softmax makes weighs tiles or tokens, also when it is reshaped, masked or spread."""
        passes = node.op_type in _BETWEEN or node.op_type in ("Where", "Cast")
        if node.op_type == "MatMul":  # by a constant: each head's weight goes to its classes
            passes = not self._constants.keys().isdisjoint(node.input)
        if node.op_type == "Softmax" or (passes and not self._weighing.isdisjoint(node.input)):
            self._weighing.update(node.output)

    def _add_in_half(self, node: NodeProto) -> None:
        halved = NodeProto()
        halved.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in self._floats:
                halved.input[position] = self._half_of(name)
        for position, name in enumerate(node.output):
            halved.output[position] = self._halves[name] = _half_name(name)
            self._computed_in_half.add(name)
        self._nodes.append(halved)

    def _add_in_float(self, node: NodeProto) -> None:
        for name in inputs_of(node):
            self._want_whole(name)
        self._nodes.append(node)
        self._whole.update(node.output)

    def _half_of(self, name: str) -> str:
        if name in self._halves:
            return self._halves[name]
        half = self._halves[name] = _half_name(name)
        if name in self._constants:
            values = self._constants[name].astype(np.float16)
            self._graph.initializer.append(numpy_helper.from_array(values, half))
        else:
            self._nodes.append(_cast(name, half, TensorProto.FLOAT16))
        return half

    def _want_whole(self, name: str) -> None:
        if name in self._halves and name not in self._whole:
            self._nodes.append(_cast(self._halves[name], name, TensorProto.FLOAT))
            self._whole.add(name)


def _half_name(name: str) -> str:
    return f"{name}_fp16"


def _cast(name: str, into: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [name], [into], name=f"cast_{into}", to=kind)


def _float_constants(graph: GraphProto) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                yield node.output[0], numpy_helper.to_array(attribute.t)


def _float_tensors(graph: GraphProto) -> set[str]:
    """Names of the float32 tensors whose type is known."""
    ports = (*graph.input, *graph.output, *graph.value_info)
    return {port.name for port in ports if port.type.tensor_type.elem_type == TensorProto.FLOAT}


def _width(node: NodeProto, constants: dict[str, npt.NDArray[np.float32]]) -> int:
    """Outputs of a layer, per place."""
    position = next(i for i, n in enumerate(node.input) if n in constants and constants[n].ndim > 1)
    shape: tuple[int, ...] = constants[node.input[position]].shape
    if node.op_type == "MatMul":
        return int(shape[-1] if position else shape[-2])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    is_last = node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not transposed)
    return int(shape[1 if is_last else 0])


__all__ = ["LEAST_WIDTH", "write_half"]
