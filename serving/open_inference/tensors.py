"""Tensors as the protocol writes them, and as arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from cmamil_sdk.wording import counted

from ..status import FieldProblem, RequestInvalid
from .signatures import Datatype, Tensor

Arrays = dict[str, npt.NDArray[Any]]

_NUMPY: dict[Datatype, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}
_CONTENTS: dict[Datatype, str] = {
    "UINT8": "uint_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}
_LENGTH = struct.Struct("<I")
_SHOWN_CHARACTERS = 80
_VALUES_AT_ONCE = 65536


class _Wrong(Exception):
    """What is wrong with one field of a tensor, which ``str`` says."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


def read_inputs(request: ModelInferRequest, known: Sequence[Tensor]) -> Arrays:
    """The inputs of a request by name; BYTES are arrays of objects.

    Raises:
        RequestInvalid: an input is missing, unknown, there twice, or not of the type, shape or size that
            it has to be. All that is wrong is named.
    """
    raw = request.raw_input_contents
    problems = _ways_mixed(request) if raw else []
    if problems:
        raise RequestInvalid(problems)
    expected = {tensor.name: tensor for tensor in known}
    arrays: Arrays = {}
    for number, given in enumerate(request.inputs):
        tensor = expected.pop(given.name, None)
        try:
            if tensor is None:
                names = ", ".join(tensor.name for tensor in known)
                raise _Wrong("name", f"must be one of {names}, each once")
            arrays[tensor.name] = _array(given, raw[number] if raw else None, tensor)
        except _Wrong as wrong:
            field = f"inputs[{number}].{wrong.field}"
            if raw and wrong.field == "contents":
                field = f"raw_input_contents[{number}]"
            problems.append(FieldProblem(field, str(wrong)))
    missing = [tensor.name for tensor in expected.values() if not tensor.optional]
    if missing:
        problems.append(FieldProblem("inputs", f"must hold {', '.join(missing)}"))
    if problems:
        raise RequestInvalid(problems)
    return arrays


def wanted_outputs(request: ModelInferRequest, known: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs that a request asks for, in its order; all, if it names none.

    Raises:
        RequestInvalid: one is unknown, or asked for twice.
    """
    by_name = {tensor.name: tensor for tensor in known}
    names = [output.name for output in request.outputs] or list(by_name)
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    problems = [
        FieldProblem(f"outputs[{number}].name", f"must be one of {', '.join(by_name)}, each once")
        for number, name in enumerate(names)
        if name not in by_name or first[name] != number
    ]
    if problems:
        raise RequestInvalid(problems)
    return tuple(by_name[name] for name in names)


def write_outputs(
    response: ModelInferResponse,
    wanted: Sequence[Tensor],
    arrays: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Add outputs to a response, always raw: stock clients read other contents of BYTES alone."""
    for tensor in wanted:
        array = arrays[tensor.name]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        response.raw_output_contents.append(_raw(array, tensor.datatype))


def _ways_mixed(request: ModelInferRequest) -> list[FieldProblem]:
    """What is wrong with a request that uses ``raw_input_contents``: it must hold everything."""
    problems = []
    n_raw, n_inputs = len(request.raw_input_contents), len(request.inputs)
    if n_raw != n_inputs:
        why = f"must hold one element for each of {n_inputs} inputs, it holds {n_raw}"
        problems.append(FieldProblem("raw_input_contents", why))
    problems += [
        FieldProblem(f"inputs[{number}].contents", "must be unset beside raw_input_contents")
        for number, tensor in enumerate(request.inputs)
        if tensor.HasField("contents")
    ]
    return problems


def _array(
    given: ModelInferRequest.InferInputTensor, raw: bytes | None, tensor: Tensor
) -> npt.NDArray[Any]:
    if given.datatype != tensor.datatype:
        shown = given.datatype[:_SHOWN_CHARACTERS]
        raise _Wrong("datatype", f"must be {tensor.datatype}, it is {shown!r}")
    shape = tuple(given.shape)
    if len(shape) != len(tensor.shape) or not all(map(_fits, shape, tensor.shape)):
        needed = ", ".join("1 or more" if size < 0 else str(size) for size in tensor.shape)
        raise _Wrong("shape", f"must be [{needed}], it is {list(shape[:8])}")
    count = math.prod(shape)  # of any size: Python's integers do not overflow
    if raw is None:
        flat = _typed(given, tensor.datatype, count)
    elif tensor.datatype == "BYTES":
        flat = _objects(_elements(raw, count))
    else:
        flat = _numbers(raw, _NUMPY[tensor.datatype], count)
    return flat.reshape(shape)


def _fits(size: int, needed: int) -> bool:
    return size >= 1 if needed < 0 else size == needed


def _numbers(raw: bytes, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    if len(raw) != count * dtype.itemsize:
        needed = f"{count} elements of {dtype.itemsize} bytes"
        raise _Wrong("contents", f"must be {needed}, it is {len(raw)} bytes long")
    return np.frombuffer(raw, dtype)


def _elements(raw: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor, each with its length before it; ``count`` of them."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= count:
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else 0
        at = start + size
        if at > len(raw):
            raise _Wrong("contents", f"ends within element {len(found)}")
        found.append(raw[start:at])
    if len(found) != count:
        how_many = "more" if len(found) > count else len(found)
        raise _Wrong("contents", f"must hold {counted(count, 'element')}, it holds {how_many}")
    return found


def _typed(
    given: ModelInferRequest.InferInputTensor, datatype: Datatype, count: int
) -> npt.NDArray[Any]:
    """Elements given in the field of their type."""
    field = _CONTENTS[datatype]
    strange = [used.name for used, _ in given.contents.ListFields() if used.name != field]
    if strange:
        raise _Wrong("contents", f"must use {field} alone, it uses {', '.join(strange)}")
    values = getattr(given.contents, field)
    if len(values) != count:
        held = len(values)
        raise _Wrong("contents", f"must hold {counted(count, 'element')}, it holds {held}")
    if datatype == "BYTES":
        return _objects(values)
    if datatype == "UINT8":
        wide = _gathered(values, np.dtype(np.uint32))
        if wide.max() > np.iinfo(np.uint8).max:
            raise _Wrong("contents", "must be from 0 to 255")
        return wide.astype(np.uint8)
    return _gathered(values, _NUMPY[datatype])


def _gathered(values: Sequence[float], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array of ``values``, made in parts, because each of them holds the interpreter (3 ms)."""
    array = np.empty(len(values), dtype)
    for start in range(0, len(values), _VALUES_AT_ONCE):
        part = slice(start, start + _VALUES_AT_ONCE)
        array[part] = values[part]
    return array


def _objects(values: Sequence[bytes]) -> npt.NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def _raw(array: npt.NDArray[Any], datatype: Datatype) -> bytes:
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(value)) + value for value in array.ravel())
    return np.ascontiguousarray(array, _NUMPY[datatype]).tobytes()


__all__ = ["Arrays", "read_inputs", "wanted_outputs", "write_outputs"]
