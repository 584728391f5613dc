"""An ONNX graph, step by step, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from torch import Tensor

from cmamil_sdk.engines.graphs import graph_source
from cmamil_sdk.engines.inputs import InputSpec, input_spec
from cmamil_sdk.engines.torch_layers import Node
from cmamil_sdk.engines.torch_operators import (
    DTYPES,
    FULL_PRECISION,
    HOST_INPUTS,
    LOW_PRECISION,
    OPERATORS,
    Operator,
)
from cmamil_sdk.errors import BundleUnsupported

_OPSETS = range(13, 25)
_INPUT_TYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "FLOAT16": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class _Step:
    """A node, what runs it, and the values that no later step needs."""

    node: Node
    run: Operator
    done_with: tuple[str, ...]


class TorchGraph:
    """Runs on whatever device its inputs lie on, which is that of its constants. Keeps no state.

    Numbers that are looked at, such as shapes, stay on the host: a device is never waited for.

    Args:
        path: the ``.onnx`` file.
        device: where constants go.
        dtype: of convolutions and matrix products; everything that is sensitive is float32 anyway. Or
            float64, for everything, to check others by.
        sha256: of the file, which is compared as it is read; None: whatever is in it.

    Attributes:
        inputs: type and shape of each.
        outputs: their names.

    Raises:
        BundleUnsupported: no ONNX graph, or one with an opset or operator that is not known here.
    """

    def __init__(
        self, path: Path, device: torch.device, dtype: torch.dtype, sha256: str | None = None
    ) -> None:
        model = _load(path, sha256)
        nodes, constants = _parts(model.graph)
        _check_known(path, model, nodes)
        self._device, self._dtype = device, dtype
        self.inputs = {
            port.name: _spec(path, port) for port in model.graph.input if port.name not in constants
        }
        self.outputs = tuple(port.name for port in model.graph.output)
        self._steps = list(_steps(nodes, keep={*constants, *self.outputs}))
        self._host: dict[str, Tensor] = constants
        self._constants = {
            name: self._placed(name, tensor, nodes) for name, tensor in constants.items()
        }

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        values = dict(inputs)
        for step in self._steps:
            found = step.run(step.node, *self._arguments(step.node, values))
            tensors = found if isinstance(found, tuple) else (found,)
            values.update(zip(step.node.outputs, tensors, strict=False))
            for name in step.done_with:
                values.pop(name, None)  # an output that torch does not give, and nobody wants
        return {name: values[name] for name in self.outputs}

    @property
    def constant_bytes(self) -> int:
        """Memory of the constants, most of which are weights."""
        return sum(tensor.nbytes for tensor in self._constants.values())

    def _arguments(self, node: Node, values: Mapping[str, Tensor]) -> list[Tensor | None]:
        hosted = HOST_INPUTS.get(node.operator, frozenset())
        computed = [values[n] for i, n in enumerate(node.inputs) if n in values and i not in hosted]
        # What is computed from shapes alone stays where shapes are.
        is_shape = bool(computed) and all(_is_shape(tensor) for tensor in computed)
        arguments: list[Tensor | None] = []
        for position, name in enumerate(node.inputs):
            if not name:
                arguments.append(None)
            elif position in hosted:
                arguments.append(self._host[name] if name in self._host else values[name])
            elif name not in values:
                arguments.append((self._host if is_shape else self._constants)[name])
            elif is_shape:
                arguments.append(values[name])
            else:
                arguments.append(self._in_precision(node, values[name].to(self._device)))
        return arguments

    def _in_precision(self, node: Node, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or self._dtype == torch.float32:
            return tensor
        if self._dtype == torch.float64:
            return tensor.double()
        if node.operator in LOW_PRECISION:
            return tensor.to(self._dtype)
        return tensor.float() if node.operator in FULL_PRECISION else tensor

    def _placed(self, name: str, tensor: Tensor, nodes: Sequence[Node]) -> Tensor:
        """A constant on the device, as those who use it want it."""
        users = [node for node in nodes if name in node.inputs]
        if tensor.is_floating_point() and {n.operator for n in users} <= LOW_PRECISION:
            tensor = tensor.to(self._dtype)
        if tensor.ndim == 4 and {node.operator for node in users} == {"Conv"}:
            return tensor.to(self._device, memory_format=torch.channels_last)
        return tensor.to(self._device)


def _is_shape(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.int64


def _load(path: Path, sha256: str | None) -> ModelProto:
    source = graph_source(path, sha256)
    if source == path and not path.is_file():
        raise BundleUnsupported(f"There is no graph at {path}; export the model again.")
    try:
        model = (
            onnx.load_model_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        )
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as problem:
        raise BundleUnsupported(f"{path} is no ONNX graph; export the model again.") from problem
    if not model.graph.node:
        raise BundleUnsupported(f"{path} is no ONNX graph; export the model again.")
    return model


def _parts(graph: GraphProto) -> tuple[list[Node], dict[str, Tensor]]:
    """The nodes that compute, and the constants by name."""
    constants = {tensor.name: _tensor(tensor) for tensor in graph.initializer}
    nodes = []
    for each in graph.node:
        node = _node(each)
        if node.operator == "Constant":
            constants[node.outputs[0]] = _constant(node)
        else:
            nodes.append(node)
    return nodes, constants


def _node(proto: NodeProto) -> Node:
    domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}::"
    return Node(
        operator=f"{domain}{proto.op_type}",
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute},
    )


def _constant(node: Node) -> Tensor:
    ((name, value),) = node.attributes.items()
    if isinstance(value, TensorProto):
        return _tensor(value)
    if name not in ("value_int", "value_ints", "value_float", "value_floats"):
        raise node.refuse(name)
    return torch.tensor(value)


def _tensor(proto: TensorProto) -> Tensor:
    if proto.data_type not in DTYPES:
        kind = TensorProto.DataType.Name(proto.data_type).lower()
        raise BundleUnsupported(
            f"Constant {proto.name} is {kind}, which torch here does not take; use --engine onnxruntime."
        )
    array = numpy_helper.to_array(proto)
    if proto.data_type == TensorProto.BFLOAT16:  # numpy has no such type
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _check_known(path: Path, model: ModelProto, nodes: Sequence[Node]) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset not in _OPSETS:
        raise BundleUnsupported(
            f"{path} is of opset {opset}, torch here runs {_OPSETS[0]} to {_OPSETS[-1]}; use --engine "
            "onnxruntime."
        )
    unknown = {node.operator for node in nodes} - OPERATORS.keys()
    if unknown:
        raise BundleUnsupported(
            f"{path} has operators that torch here does not run ({', '.join(sorted(unknown))}); use "
            "--engine onnxruntime."
        )


def _spec(path: Path, port: ValueInfoProto) -> InputSpec:
    tensor = port.type.tensor_type
    shape = [
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None
        for axis in tensor.shape.dim
    ]
    kind = TensorProto.DataType.Name(tensor.elem_type)
    return input_spec(str(path), port.name, kind, shape, _INPUT_TYPES)


def _steps(nodes: Sequence[Node], keep: set[str]) -> Iterator[_Step]:
    """The nodes in order, each with the values that are needed for the last time."""
    last_use: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in (*node.inputs, *node.outputs):
            if name and name not in keep:
                last_use[name] = position
    ends: dict[int, list[str]] = {}
    for name, position in last_use.items():
        ends.setdefault(position, []).append(name)
    for position, node in enumerate(nodes):
        yield _Step(node, OPERATORS[node.operator], tuple(ends.get(position, ())))


__all__ = ["TorchGraph"]
