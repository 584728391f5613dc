"""What every engine offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GraphEngineName = Literal["onnxruntime", "openvino", "torch"]
"""Run an ONNX graph as it is."""

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
"""Run a plan that was built from one."""

EngineName = Literal[GraphEngineName, RuntimeName]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

TENSORRT: tuple[RuntimeName, ...] = get_args(RuntimeName)


@dataclass(frozen=True)
class EngineInfo:
    """What is in use: never what was asked for.

    Attributes:
        name: an :data:`EngineName`.
        device: ``cpu`` or ``cuda:N``.
        precision: of the arithmetic, a :data:`Precision`.
        version: of the runtime.
        reason: why this engine, device and precision were chosen.
        takes_device_arrays: whether inputs may lie on ``device``, and are used there without a copy to
            the host.
    """

    name: str
    device: str
    precision: str
    version: str
    reason: str
    takes_device_arrays: bool = False

    @property
    def label(self) -> str:
        """Short form for tables, for example ``onnxruntime-cpu-fp32``."""
        return f"{self.name}-{self.device.split(':')[0]}-{self.precision}"


class OnDevice(Protocol):
    """A contiguous array on a CUDA device, for example CuPy's; complete before it is handed over."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, type and shape, as Numba defines it."""
        ...


Inputs = Mapping[str, Array | OnDevice]
"""By name; on the device only where :attr:`EngineInfo.takes_device_arrays`."""


class Engine(Protocol):
    """A loaded graph. ``infer`` may be called from several threads at once.

    There is no method that loads: which class it takes is chosen by what is there, and one that exists is
    loaded. :func:`~cmamil_sdk.engines.load_engine` does both.
    """

    info: EngineInfo

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph on named inputs and return its named outputs.

        Raises:
            FieldInvalid: an input is missing, unknown, or of the wrong type or shape.
        """
        ...

    def warm_up(self, rows: int) -> None:
        """Run the graph on zeros, so that calls of up to ``rows`` rows find made what a first call makes.

        Rows are tiles of an encoder, and tiles at each scale of an aggregator.

        Raises:
            CmamilError: as :meth:`infer`.
        """
        ...

    def memory_bytes(self) -> int | None:
        """Memory that the runtime says the graph holds now, on its device; None where it does not say."""
        ...

    def close(self) -> None:
        """Release the graph."""
        ...


__all__ = [
    "TENSORRT",
    "Array",
    "Engine",
    "EngineInfo",
    "EngineName",
    "GraphEngineName",
    "Inputs",
    "OnDevice",
    "Precision",
    "RuntimeName",
]
