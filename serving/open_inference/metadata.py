"""What the server says of itself and of its models, in the messages of the protocol."""

from __future__ import annotations

from cmamil_sdk import __version__
from cmamil_sdk._proto.inference.open_inference_pb2 import (
    TYPE_FP32,
    TYPE_INT64,
    TYPE_STRING,
    TYPE_UINT8,
    DataType,
    ModelConfig,
    ModelMetadataResponse,
    ServerMetadataResponse,
)

from .catalogue import ServedModel
from .signatures import Datatype, Tensor

_CONFIG_TYPES: dict[Datatype, DataType] = {
    "UINT8": TYPE_UINT8,
    "INT64": TYPE_INT64,
    "FP32": TYPE_FP32,
    "BYTES": TYPE_STRING,
}


def server_metadata() -> ServerMetadataResponse:
    """Name, version, and extensions: without ``statistics``, or clients would ask for them."""
    return ServerMetadataResponse(
        name="cmamil-sdk", version=__version__, extensions=["model_configuration"]
    )


def model_metadata(model: ServedModel, versions: list[str]) -> ModelMetadataResponse:
    """Versions, platform, tensors."""
    message = ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=model.platform,
        properties=model.notes(),
    )
    for tensor in model.signature.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for tensor in model.signature.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message


def model_config(model: ServedModel, max_call_tiles: int) -> ModelConfig:
    """Triton's configuration of the model, as far as ``perf_analyzer`` reads it."""
    is_batched = model.part == "encoder"
    config = ModelConfig(
        name=model.name,
        platform=model.platform,
        max_batch_size=max_call_tiles if is_batched else 0,
    )
    for tensor in model.signature.inputs:
        config.input.add(
            name=tensor.name,
            data_type=_CONFIG_TYPES[tensor.datatype],
            dims=_dims(tensor, is_batched=is_batched),
            optional=tensor.optional,
        )
    for tensor in model.signature.outputs:
        config.output.add(
            name=tensor.name,
            data_type=_CONFIG_TYPES[tensor.datatype],
            dims=_dims(tensor, is_batched=is_batched),
        )
    for key, value in model.notes().items():
        config.parameters[key].string_value = value
    return config


def _dims(tensor: Tensor, *, is_batched: bool) -> tuple[int, ...]:
    return tensor.shape[1:] if is_batched else tensor.shape


__all__ = ["model_config", "model_metadata", "server_metadata"]
