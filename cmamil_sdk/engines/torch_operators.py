"""The operators of ONNX that torch runs here: those of image networks, opset 13 and later.

Each takes its node and the node's inputs, None where one is left out, and gives one output or several.
Source: ONNX's operator documentation, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmamil_sdk.errors import BundleUnsupported


@dataclass(frozen=True)
class Node:
    """One step of a graph; ``inputs`` are names, empty where one is left out."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        """An attribute that is a list of numbers."""
        return [int(number) for number in self.attributes.get(name, default)]

    def refuse(self, what: str) -> BundleUnsupported:
        """The error of a form of the operator that is not known here."""
        return BundleUnsupported(
            f"torch here runs no {self.operator} with {what}; use --engine onnxruntime."
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


def _windows(
    node: Node, x: Tensor, kernel: Sequence[int], outside: float
) -> tuple[Tensor, dict[str, Any]]:
    """The image, padded where padding is not the same on both sides, and where windows lie on it."""
    axes = len(kernel)
    strides, dilations = node.ints("strides", [1] * axes), node.ints("dilations", [1] * axes)
    pads = node.ints("pads", [0] * 2 * axes)
    automatic = node.attributes.get("auto_pad", b"NOTSET").decode()
    if automatic.startswith("SAME"):
        missing = [
            max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        half = [n // 2 if automatic == "SAME_UPPER" else -(-n // 2) for n in missing]
        pads = [*half, *(n - first for n, first in zip(missing, half, strict=True))]
    before, after = pads[:axes], pads[axes:]
    if before != after:
        last_first = zip(reversed(before), reversed(after), strict=True)
        x = F.pad(x, list(chain(*last_first)), value=outside)
        before = [0] * axes
    return x, {"stride": strides, "padding": before, "dilation": dilations}


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, windows = _windows(node, x, weight.shape[2:], 0.0)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
    found: Tensor = convolve(x, weight, bias, **windows, groups=node.attributes.get("group", 1))
    return found


def _max_pool(node: Node, x: Tensor) -> Tensor:
    if len(node.outputs) > 1:
        raise node.refuse("a second output")
    kernel = node.ints("kernel_shape", ())
    x, windows = _windows(node, x, kernel, float("-inf"))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    found: Tensor = F.max_pool2d(x, kernel, **windows, ceil_mode=ceil)
    return found


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel, whole = node.ints("kernel_shape", ()), bool(node.attributes.get("count_include_pad", 0))
    padded, windows = _windows(node, x, kernel, 0.0)
    if (padded is not x and not whole) or set(windows.pop("dilation")) != {1}:
        raise node.refuse("such windows")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return F.avg_pool2d(padded, kernel, **windows, ceil_mode=ceil, count_include_pad=whole)


def _image_axes(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, eps=node.attributes.get("epsilon", 1e-5))


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[node.attributes.get("axis", -1) :]
    given = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), given, node.attributes.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(
        x, weight=scale, bias=bias, eps=node.attributes.get("epsilon", 1e-5), use_input_stats=True
    )


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``scale`` and ``bias`` are per group up to opset 20, per channel from 21 on."""
    times = x.shape[1] // len(scale)
    scale, bias = (values.repeat_interleave(times) for values in (scale, bias))
    eps = node.attributes.get("epsilon", 1e-5)
    return F.group_norm(x, node.attributes["num_groups"], scale, bias, eps)


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


def _resize(
    node: Node, x: Tensor, _roi: Tensor | None, scales: Tensor | None, sizes: Tensor
) -> Tensor:
    """Images, as torch's own interpolation with antialiasing is exported."""
    given = node.attributes
    mode = {b"linear": "bilinear", b"cubic": "bicubic"}.get(given.get("mode", b"nearest"))
    is_torchs = given.get("antialias", 0) and given.get("exclude_outside", 0)
    if scales is not None or mode is None or not is_torchs or x.ndim != 4:
        raise node.refuse("anything but antialiasing to a size")
    return F.interpolate(x, sizes.tolist()[2:], mode=mode, align_corners=False, antialias=True)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    if node.attributes.get("mode", b"DCR") != b"CRD":
        raise node.refuse("mode DCR")
    return F.pixel_shuffle(x, node.attributes["blocksize"])


def _cast(node: Node, x: Tensor) -> Tensor:
    dtype = DTYPES.get(node.attributes["to"])
    if dtype is None:
        raise node.refuse(f"type {node.attributes['to']}")
    return x.to(dtype)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "And": _elementwise(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda node, *parts: torch.cat(parts, node.attributes["axis"]),
    "Conv": _conv,
    "Cos": _elementwise(torch.cos),
    "DepthToSpace": _depth_to_space,
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
    "GlobalAveragePool": lambda _node, x: x.mean(_image_axes(x), keepdim=True),
    "GlobalMaxPool": lambda _node, x: x.amax(_image_axes(x), keepdim=True),
    "Greater": _elementwise(torch.gt),
    "GreaterOrEqual": _elementwise(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(F.hardswish),
    "Identity": lambda _node, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.attributes.get("alpha", 0.01)),
    "Less": _elementwise(torch.lt),
    "LessOrEqual": _elementwise(torch.le),
    "Log": _elementwise(torch.log),
    "MatMul": _elementwise(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
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
    "Resize": _resize,
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
    "Node",
    "Operator",
]
