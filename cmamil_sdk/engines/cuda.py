"""The few calls of the CUDA runtime that running a plan takes, by cuda-bindings."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from cmamil_sdk.errors import EngineMissing, GpuOutOfMemory

_NON_BLOCKING = 1
_NAME_BYTES = 256


class Cuda:
    """One device. Addresses, streams and graphs are plain integers and handles.

    Args:
        index: of the device.

    Raises:
        EngineMissing: cuda-bindings, the driver or the device is missing.
    """

    def __init__(self, index: int) -> None:
        self._runtime = _load()
        count = self.device_count()
        if index >= count:
            raise EngineMissing(
                f"There is no device cuda:{index}, CUDA finds {count}; take a machine with an NVIDIA GPU "
                "and its driver, or use --engine onnxruntime --device cpu."
            )
        self.index = index

    @staticmethod
    def device_count() -> int:
        """How many devices there are; 0 without a driver.

        Raises:
            EngineMissing: cuda-bindings is missing.
        """
        _, count = _load().cudaGetDeviceCount()
        return int(count or 0)

    @property
    def compute_capability(self) -> str:
        """Of the device, for example ``89``."""
        kinds = self._runtime.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, self.index)
            for kind in (
                kinds.cudaDevAttrComputeCapabilityMajor,
                kinds.cudaDevAttrComputeCapabilityMinor,
            )
        )
        return f"{major}{minor}"

    def activate(self) -> None:
        """Make it the device of the calling thread."""
        self._call("cudaSetDevice", self.index)

    def new_stream(self) -> int:
        """A stream that does not wait for the default one."""
        return int(self._call("cudaStreamCreateWithFlags", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Free a stream."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device.

        Raises:
            GpuOutOfMemory: the device has no such memory left.
        """
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", address)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes, in the stream, between host and device or within either."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """Set ``size`` bytes of the device to zero, in the stream."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts into the stream instead of doing it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        """What was recorded, ready to be launched."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Do what was recorded."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Free a recording."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *answer = getattr(self._runtime, name)(*arguments)
        codes = self._runtime.cudaError_t
        if status == codes.cudaErrorMemoryAllocation:
            raise GpuOutOfMemory(
                f"cuda:{self.index} has too little free memory ({name} of {arguments[0]} bytes); end "
                "other programs on it, or predict fewer slides at a time."
            )
        if status != codes.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(status)
            raise EngineMissing(
                f"cuda:{self.index} failed in {name} ({text.decode()}); check the GPU with nvidia-smi, "
                "and start again."
            )
        return answer[0] if answer else None


def driver_devices() -> int:
    """How many devices the NVIDIA driver shows; 0 without a driver. Needs no package."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def device_name(device: str) -> str:
    """What the NVIDIA driver calls ``cuda:N``; the name itself where there is no such device."""
    driver, handle = _driver(), ctypes.c_int(0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    index = int(device.partition(":")[2] or 0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(handle), index):
        return device
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    return name.value.decode(errors="replace")


def device_names() -> list[str]:
    """What the NVIDIA driver calls its devices, in their order; none without a driver."""
    return [device_name(f"cuda:{index}") for index in range(driver_devices())]


def _driver() -> ctypes.CDLL | None:
    """The driver's library, ready; every call of it gives 0 if it worked."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def _load() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as problem:
        raise EngineMissing(
            f"TensorRT needs cuda-bindings ({problem}); install cmamil-sdk[tensorrt-rtx], or "
            "cuda-bindings beside tensorrt."
        ) from problem


__all__ = ["Cuda", "device_name", "device_names", "driver_devices"]
