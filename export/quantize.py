"""An encoder's graph in int8: scales measured on tiles, weights per channel, unsigned activations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from cmamil_sdk.files import write_atomic

from .graph import preprocessing_of, quiet, with_precision

UInt8 = npt.NDArray[np.uint8]

_BATCH_TILES = 8
_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = (
    *("Add", "Clip", "Concat", "Flatten", "MaxPool", "Relu", "Reshape", "Slice", "Split"),
    *("Squeeze", "Transpose", "Unsqueeze"),
)
"""Between layers these work on int8 too; pooling by means, normalisation and softmax do not."""


def write_int8(graph: Path, path: Path, tiles: UInt8) -> None:
    """Write the graph of ``graph`` with quantised layers to ``path``.

    Args:
        graph: an encoder in float32.
        path: of the graph in int8, whose layers stand between QuantizeLinear and DequantizeLinear.
        tiles: ``[N, px, px, 3]``, the more like those to come the better.
    """
    with tempfile.TemporaryDirectory(prefix="cmamil-int8-") as name, quiet():
        prepared, quantised = Path(name, "prepared.onnx"), Path(name, "quantised.onnx")
        # Folds what normalises into the layers before it, which are quantised as one.
        quant_pre_process(graph, prepared, skip_symbolic_shape=True)
        first = _name_nodes(prepared)
        quantize_static(
            prepared,
            quantised,
            _Batches(tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_BETWEEN],
            nodes_to_exclude=first,
            per_channel=True,
            # Signed activations run at half the speed of unsigned ones in onnxruntime.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # Extremes of a batch, averaged: those of all tiles leave most values a few steps alone.
            extra_options={"MatMulConstBOnly": True, "CalibMovingAverage": True},
        )
        model = onnx.load(quantised)
    with_precision(model, "int8")
    write_atomic(path, model.SerializeToString())


def _name_nodes(path: Path) -> list[str]:
    """Give every node a name; returns those of the preprocessing."""
    model = onnx.load(path)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    onnx.save(model, path)
    return [node.name for node in preprocessing_of(model.graph)]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Tiles in batches, as the quantiser asks for them."""

    def __init__(self, tiles: UInt8) -> None:
        self._batches: Iterator[UInt8] = (
            tiles[start : start + _BATCH_TILES] for start in range(0, len(tiles), _BATCH_TILES)
        )

    def get_next(self) -> dict[str, UInt8] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"tiles": batch}


__all__ = ["write_int8"]
