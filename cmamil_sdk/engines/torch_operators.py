"""The operators of ONNX that torch runs here: those of image networks, opset 13 and later.

Each takes its node and the node's inputs, None where one is left out, and gives one output or several.
Source: ONNX's operator documentation, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmamil_sdk.engines.torch_layers import (
    Node,
    average_pool,
    batch_norm,
    conv,
    depth_to_space,
    group_norm,
    image_axes,
    instance_norm,
    layer_norm,
    max_pool,
    resize,
)

Output = Tensor | tuple[Tensor, ...]
Operator = Callable[..., Output]

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""By ONNX's number."""


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda _node, *inputs: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Of any number of inputs."""
    return lambda _node, *inputs: reduce(function, inputs)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    alpha = node.attributes.get("alpha", 1.0)
    if c is None:
        return torch.mul(a @ b, alpha)
    return torch.addmm(c, a, b, beta=node.attributes.get("beta", 1.0), alpha=alpha)


def _divide(_node: Node, a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _clip(_node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    limits = (None if limit is None else limit.item() for limit in (low, high))
    return torch.clamp(x, *limits)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.attributes.get("approximate", b"none").decode())


def _reduction(function: Callable[..., Tensor]) -> Operator:
    """``function(x, axes, keepdim)``; the axes are an input, or an attribute of older opsets."""

    def run(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = node.ints("axes", ()) if axes is None else axes.tolist()
        if not given and node.attributes.get("noop_with_empty_axes", 0):
            return x
        keep = bool(node.attributes.get("keepdims", 1))
        return function(x, given or list(range(x.ndim)), keep)

    return run


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 1) % (x.ndim + 1)
    return x.reshape(x.shape[:axis].numel(), -1)


def _shape(node: Node, x: Tensor) -> Tensor:
    """On the host, as all that is computed from it."""
    part = slice(node.attributes.get("start", 0), node.attributes.get("end"))
    return torch.tensor(list(x.shape)[part], dtype=torch.int64)


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> Output:
    axis = node.attributes.get("axis", 0)
    size = -(-x.shape[axis] // len(node.outputs)) if sizes is None else sizes.tolist()
    return tuple(torch.split(x, size, axis))


def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    firsts, lasts = starts.tolist(), ends.tolist()
    along = range(len(firsts)) if axes is None else axes.tolist()
    strides = [1] * len(firsts) if steps is None else steps.tolist()
    if min(strides) < 1:
        raise node.refuse("a negative step")
    parts = [slice(None)] * x.ndim
    for axis, first, last, step in zip(along, firsts, lasts, strides, strict=True):
        size = x.shape[axis]  # "as far as it goes" is a number that torch warns of
        parts[axis] = slice(max(first, -size), min(max(last, -size), size), step)
    return x[tuple(parts)]


def _squeeze(_node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


def _unsqueeze(_node: Node, x: Tensor, axes: Tensor) -> Tensor:
    places = axes.tolist()
    for axis in sorted(axis % (x.ndim + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


def _expand(_node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 0) % x.ndim
    if indices.ndim == 0 and indices.device.type == "cpu":
        return x.select(axis, int(indices))
    places = torch.where(indices < 0, indices + x.shape[axis], indices)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    mode = node.attributes.get("mode", b"constant").decode()
    if axes is not None or mode not in ("constant", "reflect", "edge"):
        raise node.refuse(f"mode {mode}, or axes")
    amounts = pads.tolist()
    last_first = zip(reversed(amounts[: x.ndim]), reversed(amounts[x.ndim :]), strict=True)
    flat = list(chain(*last_first))
    if mode == "constant":
        return F.pad(x, flat, value=0.0 if value is None else value.item())
    while flat[-2:] == [0, 0]:  # of axes that torch does not want to hear of
        flat = flat[:-2]
    return F.pad(x, flat, mode="replicate" if mode == "edge" else mode)


def _cast(node: Node, x: Tensor) -> Tensor:
    dtype = DTYPES.get(node.attributes["to"])
    if dtype is None:
        raise node.refuse(f"type {node.attributes['to']}")
    return x.to(dtype)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "And": _elementwise(torch.logical_and),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda node, *parts: torch.cat(parts, node.attributes["axis"]),
    "Conv": conv,
    "Cos": _elementwise(torch.cos),
    "DepthToSpace": depth_to_space,
    "Div": _divide,
    "Dropout": lambda _node, x, *_: x,
    "Einsum": lambda node, *parts: torch.einsum(node.attributes["equation"].decode(), *parts),
    "Elu": lambda node, x: F.elu(x, node.attributes.get("alpha", 1.0)),
    "Equal": _elementwise(torch.eq),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _elementwise(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _node, x: x.mean(image_axes(x), keepdim=True),
    "GlobalMaxPool": lambda _node, x: x.amax(image_axes(x), keepdim=True),
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "GroupNormalization": group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(F.hardswish),
    "Identity": lambda _node, x: x,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01)),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "Log": _elementwise(torch.log),
    "MatMul": _elementwise(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": max_pool,
    "Min": _folded(torch.minimum),
    "Mish": _elementwise(F.mish),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Not": _elementwise(torch.logical_not),
    "Or": _elementwise(torch.logical_or),
    "PRelu": lambda _node, x, slope: torch.where(x < 0, x * slope, x),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Resize": resize,
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sin": _elementwise(torch.sin),
    "Slice": _slice,
    "Softmax": lambda node, x: torch.softmax(x, node.attributes.get("axis", -1)),
    "Softplus": _elementwise(F.softplus),
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Sum": _folded(operator.add),
    "Tanh": _elementwise(torch.tanh),
    "Tile": lambda _node, x, times: x.repeat(times.tolist()),
    "Transpose": lambda node, x: x.permute(node.ints("perm", range(x.ndim)[::-1])),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(torch.where),
}

_SECOND_ON_HOST = (
    *("Expand", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    *("Reshape", "Split", "Squeeze", "Tile", "Unsqueeze"),
)
HOST_INPUTS: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(_SECOND_ON_HOST, frozenset((1,))),
    "Clip": frozenset((1, 2)),
    "Pad": frozenset((1, 2, 3)),
    "Resize": frozenset((1, 2, 3)),
    "Slice": frozenset((1, 2, 3, 4)),
}
"""Inputs whose values are looked at, which must not lie on a device: it would have to be waited for."""

LOW_PRECISION = frozenset(("Conv", "Einsum", "Gemm", "MatMul"))
"""Where a lower precision is asked for, these compute in it, and accumulate in float32."""

FULL_PRECISION = frozenset(
    (
        *("AveragePool", "GlobalAveragePool", "ReduceL2", "ReduceMean", "ReduceSum"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
        *("LayerNormalization", "Softmax", "Exp", "Log", "Pow", "Reciprocal", "Sqrt"),
    )
)
"""These compute in float32 all the same: normalisation, softmax, pooling, and their parts."""

__all__ = [
    "DTYPES",
    "FULL_PRECISION",
    "HOST_INPUTS",
    "LOW_PRECISION",
    "OPERATORS",
    "Operator",
]
