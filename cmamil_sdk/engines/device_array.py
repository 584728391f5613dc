"""Where the bytes of an input lie, on the host or on a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from cmamil_sdk.engines.base import Array, Inputs, OnDevice
from cmamil_sdk.errors import FieldInvalid


@dataclass(frozen=True)
class ArrayView:
    """A contiguous array at an address; ``owner`` keeps it there."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    owner: object

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, array: Array | OnDevice) -> ArrayView:
        """A NumPy array, or anything with ``__cuda_array_interface__``.

        What lies on the device must be ready: wait for its stream before it is handed over.

        Raises:
            FieldInvalid: an array on the device that is not contiguous.
        """
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            held = np.ascontiguousarray(array)
            return cls(held.ctypes.data, held.dtype, held.shape, held)
        if interface.get("strides") is not None:
            raise FieldInvalid("An array on the device is not contiguous; copy it first.")
        address, _ = interface["data"]
        return cls(address, np.dtype(interface["typestr"]), tuple(interface["shape"]), array)

    def rows(self, start: int, stop: int) -> ArrayView:
        """Rows from ``start`` up to ``stop``."""
        stop = min(stop, self.shape[0])
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        return replace(
            self,
            address=self.address + start * row_bytes,
            shape=(stop - start, *self.shape[1:]),
        )


def is_on_device(array: object) -> bool:
    """Whether an array lies on a CUDA device."""
    return hasattr(array, "__cuda_array_interface__")


def on_host(graph: str, inputs: Inputs) -> dict[str, Array]:
    """The inputs as they are, for an engine that computes on the host.

    Raises:
        FieldInvalid: one lies on a device; ``graph`` names the file.
    """
    held: dict[str, Array] = {}
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray):
            raise FieldInvalid(
                f"{graph}: input {name} does not lie on the host, where this engine computes; copy it "
                "there, or use an engine on its device."
            )
        held[name] = array
    return held


__all__ = ["ArrayView", "is_on_device", "on_host"]
