"""Parts of an ONNX graph, cut out without a package to parse it, which a serving machine does not have.

Messages are read by the rules of protobuf's encoding and the numbers of ``onnx.proto``; what is kept is
copied byte for byte. Sources: https://protobuf.dev/programming-guides/encoding/ and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cmamil_sdk.errors import BundleUnsupported

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED_64: 8, _FIXED_32: 4}

_MODEL_GRAPH = 7
_NODE, _NAME, _INITIALIZER, _INPUT, _OUTPUT, _VALUE = 1, 2, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_TENSOR_NAME, _TENSOR_ELSEWHERE = 8, 13
_PORT_NAME, _PORT_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_KIND, _TENSOR_SHAPE = 1, 2
_SHAPE_AXIS = 1
_AXIS_LENGTH, _AXIS_NAME = 1, 2


_KINDS = {1: "float32", 2: "uint8", 7: "int64", 10: "float16"}


@dataclass(frozen=True)
class Port:
    """A tensor's type: of its numbers (empty for one that no model here takes), and its axes.

    An axis is a length, a name or None.
    """

    kind: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Step:
    """A node; ``reads`` are its inputs and all that its subgraphs name."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: frozenset[str]


class OnnxParts:
    """A graph, as far as it must be known to be cut.

    Attributes:
        inputs, outputs: of the graph, by name.
        constants: names of tensors that depend on no input.
        steps: in the order in which they run.

    Raises:
        BundleUnsupported: the file is no ONNX graph.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._steps: list[tuple[Step, memoryview]] = []
        self._weights: dict[str, memoryview] = {}
        self._ports: dict[str, memoryview] = {}
        self._around: list[memoryview] = []
        inputs: list[str] = []
        outputs: list[str] = []
        try:
            for field in _fields(_graph_of(path, self._around)):
                if field.number == _NODE:
                    self._steps.append((_step(field.content), field.encoded))
                elif field.number == _INITIALIZER:
                    self._weights[_text(field.content, _TENSOR_NAME)] = field.encoded
                elif field.number in (_INPUT, _OUTPUT, _VALUE):
                    name = _text(field.content, _PORT_NAME)
                    self._ports[name] = field.content
                    if field.number != _VALUE:
                        (inputs if field.number == _INPUT else outputs).append(name)
            self.inputs = {name: _port(self._ports[name]) for name in inputs}
            self.outputs = {name: _port(self._ports[name]) for name in outputs}
        except (OSError, ValueError) as problem:
            raise BundleUnsupported(
                f"{path} is no ONNX graph ({problem}); export the model again."
            ) from problem
        self.constants = self._constants()

    @property
    def steps(self) -> list[Step]:
        """In the order in which they run."""
        return [step for step, _ in self._steps]

    def port(self, name: str) -> Port | None:
        """The type of a tensor, if the file says it."""
        return _port(self._ports[name]) if name in self._ports else None

    def part(self, inputs: Collection[str], outputs: Collection[str]) -> bytes:
        """A graph of its own, in ONNX: what makes ``outputs`` of ``inputs``, and of the graph's own.

        Args:
            inputs: tensors that are given and have a :meth:`port`.
            outputs: tensors that have one.

        Raises:
            BundleUnsupported: weights that it needs lie in another file.
        """
        needed, kept = set(outputs), []
        for step, encoded in reversed(self._steps):
            if needed.intersection(step.outputs) - {*inputs}:
                needed |= step.reads
                kept.append(encoded)
        weights = [field for name, field in self._weights.items() if name in needed]
        if any(_is_elsewhere(field) for field in weights):
            raise BundleUnsupported(
                f"{self._path} keeps weights in another file; export the model again."
            )
        taken = [name for name in dict.fromkeys((*self.inputs, *inputs)) if name in needed]
        graph: list[bytes | memoryview] = [*reversed(kept), _tagged(_NAME, b"part"), *weights]
        graph += [_tagged(_INPUT, self._ports[name]) for name in taken]
        graph += [_tagged(_OUTPUT, self._ports[name]) for name in outputs]
        return b"".join((*self._around, _tagged(_MODEL_GRAPH, b"".join(graph))))

    def _constants(self) -> frozenset[str]:
        found = {*self._weights, ""}  # "" stands for an input that is left out
        for step in self.steps:
            if step.reads <= found:
                found.update(step.outputs)
        return frozenset(found)


class _Field(NamedTuple):
    """One field of a message: its number, what it holds (empty for a number), and all of it."""

    number: int
    content: memoryview
    value: int
    encoded: memoryview


def _graph_of(path: Path, around: list[memoryview]) -> memoryview:
    """The graph of a model's file; what else the model says is added to ``around``."""
    if not path.is_file():
        raise BundleUnsupported(f"There is no graph at {path}; export the model again.")
    with path.open("rb") as file:
        # large encoders are not read for the little that is looked at; views keep the mapping alive
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    graph = data[:0]
    for field in _fields(data):
        if field.number == _MODEL_GRAPH:
            graph = field.content
        else:
            around.append(field.encoded)
    return graph


def _fields(message: memoryview) -> Iterator[_Field]:
    at, empty = 0, message[:0]
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        content, value = empty, 0
        if tag & 7 == _VARINT:
            value, at = _varint(message, at)
        elif tag & 7 == _BYTES:
            length, at = _varint(message, at)
            content, at = message[at : at + length], at + length
        elif tag & 7 in _FIXED_SIZES:
            at += _FIXED_SIZES[tag & 7]
        else:
            raise ValueError(f"unknown field at byte {start}")
        if at > len(message):
            raise ValueError("it ends too early")
        yield _Field(tag >> 3, content, value, message[start:at])


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it ends too early")


def _tagged(number: int, content: bytes | memoryview) -> bytes:
    """A field that holds bytes."""
    return b"".join((_encoded(number << 3 | _BYTES), _encoded(len(content)), content))


def _encoded(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _text(message: memoryview, number: int) -> str:
    return next((str(f.content, "utf-8") for f in _fields(message) if f.number == number), "")


def _parts(message: memoryview, *path: int) -> Iterator[memoryview]:
    """The messages within messages that the numbers of their fields lead to."""
    if not path:
        yield message
        return
    for field in _fields(message):
        if field.number == path[0]:
            yield from _parts(field.content, *path[1:])


def _step(node: memoryview) -> Step:
    operator = ""
    inputs: list[str] = []
    outputs: list[str] = []
    inner: set[str] = set()
    for field in _fields(node):
        if field.number == _NODE_INPUT:
            inputs.append(str(field.content, "utf-8"))
        elif field.number == _NODE_OUTPUT:
            outputs.append(str(field.content, "utf-8"))
        elif field.number == _NODE_OPERATOR:
            operator = str(field.content, "utf-8")
        elif field.number == _NODE_ATTRIBUTE:
            inner.update(_named_by_subgraphs(field.content))
    return Step(operator, tuple(inputs), tuple(outputs), frozenset(inner.union(inputs)))


def _named_by_subgraphs(attribute: memoryview) -> Iterator[str]:
    for field in _fields(attribute):
        if field.number in _ATTRIBUTE_GRAPHS:
            for node in _parts(field.content, _NODE):
                yield from _step(node).reads
            for output in _parts(field.content, _OUTPUT):
                yield _text(output, _PORT_NAME)


def _port(message: memoryview) -> Port:
    tensors = list(_parts(message, _PORT_TYPE, _TYPE_TENSOR))
    kinds = [f.value for tensor in tensors for f in _fields(tensor) if f.number == _TENSOR_KIND]
    axes = [a for tensor in tensors for a in _parts(tensor, _TENSOR_SHAPE, _SHAPE_AXIS)]
    return Port(_KINDS.get(kinds[0], "") if kinds else "", tuple(map(_axis, axes)))


def _axis(message: memoryview) -> int | str | None:
    lengths = [f.value for f in _fields(message) if f.number == _AXIS_LENGTH]
    return lengths[0] if lengths else _text(message, _AXIS_NAME) or None


def _is_elsewhere(weight: memoryview) -> bool:
    (field,) = _fields(weight)
    return any(inner.number == _TENSOR_ELSEWHERE for inner in _fields(field.content))


__all__ = ["OnnxParts", "Port", "Step"]
