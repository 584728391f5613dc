"""ONNX graphs of one input in PyTorch: eager on a CPU; on CUDA recorded, channels last, in fp32 or bf16.

A GPU path that needs neither TensorRT nor onnxruntime's CUDA provider. Nothing of it has run on a device
yet (docs/engines.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import Array, EngineInfo, Inputs, OnDevice, Precision
from cmamil_sdk.engines.device_array import ArrayView, is_on_device, on_host
from cmamil_sdk.engines.failures import run_failed
from cmamil_sdk.engines.inputs import check_inputs, zeros
from cmamil_sdk.errors import BundleUnsupported, EngineMissing

try:
    import torch
    from torch import Tensor
    from torch.utils.dlpack import from_dlpack

    from cmamil_sdk.engines.torch_batches import RecordedBatches, record_cuda_graph, sizes_up_to
    from cmamil_sdk.engines.torch_graph import TorchGraph
except ImportError as problem:
    raise EngineMissing(
        f"torch cannot run graphs here ({problem}); install cmamil-sdk[torch]."
    ) from problem

_BF16_CAPABILITY = (8, 0)
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchEngine:
    """One ONNX graph.

    On CUDA tiles may lie on the device, calls wait for each other, and batches are filled up to a few
    sizes (:mod:`~cmamil_sdk.engines.torch_batches`).

    Args:
        graph: the ``.onnx`` file.
        device: ``cpu`` or ``cuda:N``.
        precision: of convolutions and matrix products; bf16 on CUDA alone.
        threads: threads within one ``infer`` on a CPU; torch knows one such number for the whole process.
        reason: why this engine was chosen.
        sha256: of the file, which is compared as it is read; None: whatever is in it.

    Raises:
        EngineMissing: the device is not there, or does not compute in this precision.
        BundleUnsupported: the file is no graph of one input whose operators are known here.
        BundleCorrupt: it is not that of ``sha256``.
    """

    def __init__(
        self,
        graph: Path,
        *,
        device: str,
        precision: Precision,
        threads: int,
        reason: str,
        sha256: str | None = None,
    ) -> None:
        self._name = graph.name
        self._device = _checked(device, precision)
        self._graph = TorchGraph(graph, self._device, _DTYPES[precision], sha256)
        if len(self._graph.inputs) != 1:
            raise BundleUnsupported(
                f"{graph} has {len(self._graph.inputs)} inputs, torch here runs graphs of one, which "
                "encoders are; use --engine onnxruntime."
            )
        (self._input,) = self._graph.inputs
        on_cuda = self._device.type == "cuda"
        self._batches: RecordedBatches | None = None
        if on_cuda:
            _keep_fp32()
            self._batches = RecordedBatches(self._run, self._device, record_cuda_graph)
        else:
            torch.set_num_threads(threads)
        self.info = EngineInfo(
            "torch", device, precision, version(), reason, takes_device_arrays=on_cuda
        )

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph; see :class:`~cmamil_sdk.engines.base.Engine`.

        Raises:
            BundleUnsupported: an operator has a form that torch does not run.
            MemoryTooSmall, GpuOutOfMemory, BundleUnsupported, UnexpectedError: the run failed, as
                :func:`~cmamil_sdk.engines.failures.run_failed` says.
        """
        given = inputs if self.info.takes_device_arrays else on_host(self._name, inputs)
        views = {name: ArrayView.of(array) for name, array in given.items()}
        check_inputs(self._name, self._graph.inputs, views)
        tiles = _as_tensor(given[self._input])
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        try:
            with torch.inference_mode():
                found = (self._batches or self._run)(tiles)
        except (MemoryError, RuntimeError, ValueError, IndexError) as problem:
            said = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise run_failed(self.info, self._name, problem, said) from problem
        return {name: tensor.float().numpy() for name, tensor in found.items()}

    def warm_up(self, rows: int) -> None:
        """Record, on CUDA, sizes up to that of ``rows``; see :class:`~cmamil_sdk.engines.base.Engine`."""
        sizes = [rows] if self._batches is None else sizes_up_to(rows)
        for size in sizes:
            self.infer(zeros(self._graph.inputs, size))

    def memory_bytes(self) -> int:
        """Weights; on CUDA all that torch has reserved there, for whatever else this process does too."""
        if self._device.type == "cuda":
            return torch.cuda.memory_reserved(self._device)
        return self._graph.constant_bytes

    def close(self) -> None:
        """Release the graph."""
        if self._batches is not None:
            self._batches.close()
        del self._graph

    def _run(self, tiles: Tensor) -> dict[str, Tensor]:
        return self._graph({self._input: tiles})


def version() -> str:
    """The installed torch's version, with its build."""
    return str(torch.__version__)


def cuda_available() -> bool:
    """True if this build of torch finds a CUDA device."""
    return bool(torch.cuda.is_available())


def precisions(device: str) -> tuple[Precision, ...]:
    """The precisions that a device has arithmetic for; of CPUs, fp32 alone is used here."""
    has_bf16 = device != "cpu" and torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def _checked(device: str, precision: Precision) -> torch.device:
    """The device, if it is there and computes in this precision (EngineMissing)."""
    found = torch.device(device)
    count = torch.cuda.device_count() if cuda_available() else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise EngineMissing(
            f"torch {version()} finds {count} CUDA devices and not {device}; install a build of torch "
            "for CUDA on a machine with an NVIDIA GPU and its driver, or use --device cpu."
        )
    if precision not in precisions(device):
        raise EngineMissing(
            f"torch computes in {precision} on CUDA devices of compute capability 8.0 alone, not on "
            f"{device}; use --precision fp32."
        )
    return found


def _keep_fp32() -> None:
    """TF32 has 10 bits of mantissa: it would be fp32 in name only. This holds for the whole process."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _as_tensor(array: Array | OnDevice) -> Tensor:
    """The array's own memory as a tensor; a copy of what may not be written to."""
    if is_on_device(array):
        return from_dlpack(array)
    held = np.ascontiguousarray(array)
    return torch.from_numpy(held if held.flags.writeable else held.copy())


__all__ = ["TorchEngine", "cuda_available", "precisions", "version"]
