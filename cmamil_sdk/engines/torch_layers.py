"""The layers of image networks among ONNX's operators, in torch; and the node that every operator takes.

Source: ONNX's operator documentation, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

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


def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of one to three axes."""
    x, windows = _windows(node, x, weight.shape[2:], 0.0)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
    found: Tensor = convolve(x, weight, bias, **windows, groups=node.attributes.get("group", 1))
    return found


def max_pool(node: Node, x: Tensor) -> Tensor:
    """Of images."""
    if len(node.outputs) > 1:
        raise node.refuse("a second output")
    kernel = node.ints("kernel_shape", ())
    x, windows = _windows(node, x, kernel, float("-inf"))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    found: Tensor = F.max_pool2d(x, kernel, **windows, ceil_mode=ceil)
    return found


def average_pool(node: Node, x: Tensor) -> Tensor:
    """Of images."""
    kernel, whole = node.ints("kernel_shape", ()), bool(node.attributes.get("count_include_pad", 0))
    padded, windows = _windows(node, x, kernel, 0.0)
    if (padded is not x and not whole) or set(windows.pop("dilation")) != {1}:
        raise node.refuse("such windows")
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return F.avg_pool2d(padded, kernel, **windows, ceil_mode=ceil, count_include_pad=whole)


def image_axes(x: Tensor) -> list[int]:
    """Those behind batch and channels."""
    return list(range(2, x.ndim))


def batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    """With statistics that are given."""
    return F.batch_norm(x, mean, var, scale, bias, eps=node.attributes.get("epsilon", 1e-5))


def layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Over the last axes."""
    shape = x.shape[node.attributes.get("axis", -1) :]
    given = None if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), given, node.attributes.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Over each image and channel."""
    return F.instance_norm(
        x, weight=scale, bias=bias, eps=node.attributes.get("epsilon", 1e-5), use_input_stats=True
    )


def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``scale`` and ``bias`` are per group up to opset 20, per channel from 21 on."""
    times = x.shape[1] // len(scale)
    scale, bias = (values.repeat_interleave(times) for values in (scale, bias))
    eps = node.attributes.get("epsilon", 1e-5)
    return F.group_norm(x, node.attributes["num_groups"], scale, bias, eps)


def resize(
    node: Node, x: Tensor, _roi: Tensor | None, scales: Tensor | None, sizes: Tensor
) -> Tensor:
    """Images, as torch's own interpolation with antialiasing is exported."""
    given = node.attributes
    mode = {b"linear": "bilinear", b"cubic": "bicubic"}.get(given.get("mode", b"nearest"))
    is_torchs = given.get("antialias", 0) and given.get("exclude_outside", 0)
    if scales is not None or mode is None or not is_torchs or x.ndim != 4:
        raise node.refuse("anything but antialiasing to a size")
    return F.interpolate(x, sizes.tolist()[2:], mode=mode, align_corners=False, antialias=True)


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """In the order of torch."""
    if node.attributes.get("mode", b"DCR") != b"CRD":
        raise node.refuse("mode DCR")
    return F.pixel_shuffle(x, node.attributes["blocksize"])


__all__ = [
    "Node",
    "average_pool",
    "batch_norm",
    "conv",
    "depth_to_space",
    "group_norm",
    "image_axes",
    "instance_norm",
    "layer_norm",
    "max_pool",
    "resize",
]
