"""Requests for inference, as bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk._proto.inference.open_inference_pb2 import ModelInferRequest

INFER = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32"}

Arrays = Mapping[str, npt.NDArray[Any]]
Change = Callable[[ModelInferRequest], object]


def request(model: str, arrays: Arrays, *changes: Change) -> ModelInferRequest:
    """A request with raw contents; ``changes`` are made to it one after another."""
    message = ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        kind = DATATYPES[str(array.dtype)]
        message.inputs.add(name=name, datatype=kind, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for change in changes:
        change(message)
    return message


def tiles(count: int = 1, px: int = 224) -> dict[str, npt.NDArray[np.uint8]]:
    """``count`` tiles of noise."""
    shape = (count, px, px, 3)
    return {"tiles": np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}


def slide(uri: bytes, *changes: Change, options: bytes | None = None) -> ModelInferRequest:
    """A request to the slide model of the small bundle."""
    message = ModelInferRequest(model_name="tiny-slide")
    for name, value in (("slide_uri", uri), ("options", options)):
        if value is not None:
            message.inputs.add(name=name, datatype="BYTES", shape=[1])
            message.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    for change in changes:
        change(message)
    return message
