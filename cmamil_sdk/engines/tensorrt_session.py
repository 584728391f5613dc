"""One execution context of a plan, with its stream, its memory and its recorded CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.cuda import Cuda
from cmamil_sdk.engines.device_array import ArrayView
from cmamil_sdk.engines.plans import Profile
from cmamil_sdk.errors import GpuOutOfMemory, UnexpectedError

Float32 = npt.NDArray[np.float32]

RUNS_TO_RECORD = 2
"""The first compiles and allocates, which cannot be recorded; the second is recorded."""


class Session:
    """A context that stays with one profile; serves one caller at a time.

    Args:
        library: the TensorRT module.
        engine: the deserialised plan.
        cuda: its device.
        position: of the profile.
        has_fixed_shapes: every call has the same shapes, so the work is recorded as a CUDA graph.

    Raises:
        GpuOutOfMemory: the device has too little memory left.
    """

    def __init__(
        self, library: Any, engine: Any, cuda: Cuda, position: int, *, has_fixed_shapes: bool
    ) -> None:
        self._cuda = cuda
        self._records = has_fixed_shapes
        self._has_run = False
        self._graph: Any = None
        self._memory: dict[str, tuple[int, int]] = {}
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._outputs = [
            n for n in names if engine.get_tensor_mode(n) == library.TensorIOMode.OUTPUT
        ]
        with ExitStack() as stack:
            self._stream = cuda.new_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            # Memory for this profile, and not for the largest of all.
            strategy = library.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            self._context = engine.create_execution_context(strategy)
            if self._context is None or not self._context.set_optimization_profile_async(
                position, self._stream
            ):
                raise GpuOutOfMemory(
                    f"cuda:{cuda.index} has no memory for profile {position} of the plan; end other "
                    "programs on it."
                )
            cuda.synchronize(self._stream)
            stack.callback(self._free_memory)
            self._stack = stack.pop_all()

    def run(
        self, inputs: Mapping[str, ArrayView], fill: Profile | None = None
    ) -> dict[str, Float32]:
        """Copy inputs to the device, run, and copy outputs back.

        Args:
            inputs: by name.
            fill: profile of one size, up to which rows of zeros are added, and dropped again.
        """
        for name, array in inputs.items():
            shape = array.shape if fill is None else fill[name][2]
            size = prod(shape) * array.dtype.itemsize
            self._context.set_input_shape(name, shape)
            address = self._reserve(name, size)
            self._cuda.copy(address, array.address, array.nbytes, self._stream)
            if size > array.nbytes:
                self._cuda.clear(address + array.nbytes, size - array.nbytes, self._stream)
        outputs = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = np.empty(shape, np.float32)
            self._reserve(name, outputs[name].nbytes)
        self._execute()
        for name, output in outputs.items():
            self._cuda.copy(output.ctypes.data, self._memory[name][0], output.nbytes, self._stream)
        self._cuda.synchronize(self._stream)
        if fill is None:
            return outputs
        rows = next(iter(inputs.values())).shape[0]
        return {name: output[:rows] for name, output in outputs.items()}

    @property
    def tensor_bytes(self) -> int:
        """Memory of inputs and outputs on the device."""
        return sum(size for _, size in self._memory.values())

    def close(self) -> None:
        """Free stream, memory and graph, after what is still running."""
        self._cuda.synchronize(self._stream)
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        del self._context
        self._stack.close()

    def _execute(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
            return
        if self._records and self._has_run:
            self._cuda.begin_capture(self._stream)
            self._enqueue()
            self._graph = self._cuda.end_capture(self._stream)
            self._cuda.launch(self._graph, self._stream)
            return
        self._enqueue()
        self._has_run = True

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise UnexpectedError(
                "TensorRT did not take the work; report this with the plan's document."
            )

    def _reserve(self, name: str, size: int) -> int:
        """At least ``size`` bytes for a tensor; the context is told where."""
        address, room = self._memory.get(name, (0, 0))
        if size > room:
            self._cuda.synchronize(self._stream)
            if room:
                del self._memory[name]
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._memory[name] = (address, size)
            self._context.set_tensor_address(name, address)
        return address

    def _free_memory(self) -> None:
        while self._memory:
            _, (address, _) = self._memory.popitem()
            self._cuda.free(address)


__all__ = ["RUNS_TO_RECORD", "Session"]
