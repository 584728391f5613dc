"""A double of a GPU that decodes: CuPy on the host's memory, and cuCIM's own CPU decoder behind it.

Its arrays are as strict as CuPy's: nothing turns them into NumPy's unasked, and the two do not mix.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cmamil_sdk.slides import cucim_child, cucim_cuda


class DeviceArray:
    """What is used of CuPy's arrays."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, data.ndim

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        contiguous = self._data.flags.c_contiguous
        return {
            "data": (self._data.ctypes.data, False),
            "typestr": self.dtype.str,
            "shape": self.shape,
            "strides": None if contiguous else self._data.strides,
            "version": 3,
        }

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Any:
        return iter(map(DeviceArray, self._data))

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._data[_plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._data[_plain(key)] = _plain(value)

    def __add__(self, other: Any) -> DeviceArray:
        return DeviceArray(self._data + _plain(other))

    def __mul__(self, other: Any) -> DeviceArray:
        return DeviceArray(self._data * _plain(other))

    def __rshift__(self, other: Any) -> DeviceArray:
        return DeviceArray(self._data >> _plain(other))

    def __getattr__(self, name: str) -> Any:
        if name not in ("astype", "clip", "reshape", "sum", "swapaxes"):
            raise AttributeError(name)
        return lambda *values, **options: DeviceArray(getattr(self._data, name)(*values, **options))


def _plain(value: Any) -> Any:
    """Of a device array its memory; NumPy's arrays are refused, as on a device."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    assert not isinstance(value, np.ndarray), "NumPy and CuPy arrays do not mix"
    return value._data if isinstance(value, DeviceArray) else value


def _to_device(value: Any) -> DeviceArray:
    """A copy of the host's array; of cuCIM's, which lies on the device, the very memory."""
    if isinstance(value, DeviceArray):
        return value
    is_host = isinstance(value, np.ndarray | list | tuple)
    return DeviceArray(np.array(value) if is_host else np.asarray(value))


def _stream() -> Any:
    return SimpleNamespace(synchronize=lambda: None)


CUPY = SimpleNamespace(
    empty=lambda shape, dtype: DeviceArray(np.full(shape, 171, dtype)),  # never zeros by luck
    asarray=_to_device,
    asnumpy=lambda array: array._data.copy(),
    cuda=SimpleNamespace(
        get_current_stream=_stream, Stream=lambda non_blocking: nullcontext(_stream())
    ),
)


class Image:
    """cuCIM's image, which decodes on the CPU what it is asked for on a device.

    ``change`` is added to every value, as a decoder that rounds otherwise, or does not work, would.
    """

    def __init__(self, image: Any, change: int) -> None:
        self._image, self._change = image, change
        self.asked: list[int] = []

    def read_region(self, flat: list[int], *where: Any, device: str, **options: Any) -> Any:
        assert device == "cuda"
        self.asked.append(len(flat) // 2)
        for batch in self._image.read_region(flat, *where, device="cpu", **options):
            pixels = np.asarray(batch)
            yield _Batch(pixels + np.uint8(self._change) if self._change else pixels)


class _Batch:
    """What cuCIM gives: no array of NumPy's."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.__array_interface__ = pixels.__array_interface__
        self._pixels = pixels


class OnnxSession:
    """onnxruntime's CPU session that takes the device's memory, which is the host's, for its own."""

    def __init__(self, graph: Path) -> None:
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.bound: list[tuple[str, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *_: Any) -> None:
        raise AssertionError("what lies on the device is given by address")

    def io_binding(self) -> Any:
        binding, bound = self._session.io_binding(), self.bound
        bind = binding.bind_input

        def bind_input(name, device, index, dtype, shape, address):
            bound.append((device, index, address))
            bind(name, "cpu", 0, dtype, shape, address)

        binding.bind_input = bind_input
        return binding


def put_in_place(monkeypatch: pytest.MonkeyPatch, change: int = 0) -> list[Image]:
    """Have slides decoded on this double; returns the images as they are opened."""
    images: list[Image] = []

    def open_image(name: str) -> tuple[Image, dict[str, Any]]:
        image, seen = cucim_child.open_image(name)
        images.append(Image(image, change))
        return images[-1], seen

    monkeypatch.setattr(cucim_cuda, "why_no_cuda_decoding", lambda: None)
    monkeypatch.setattr(cucim_cuda, "import_module", lambda _name: CUPY)
    monkeypatch.setattr(cucim_cuda, "open_image", open_image)
    return images
