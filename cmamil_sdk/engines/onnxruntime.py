"""ONNX graphs on ONNX Runtime, CPU or CUDA, with no silent change of device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs, Precision
from cmamil_sdk.engines.cuda import driver_devices
from cmamil_sdk.engines.device_array import ArrayView, is_on_device, on_host
from cmamil_sdk.engines.failures import no_memory, run_failed
from cmamil_sdk.engines.graphs import PRECISION_KEY, graph_source
from cmamil_sdk.engines.inputs import InputSpec, check_inputs, input_spec, zeros
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid, MemoryTooSmall

try:
    import onnxruntime as ort
except ImportError as problem:
    raise EngineMissing(
        "onnxruntime is not installed; install cmamil-sdk[cpu], or onnxruntime-gpu for CUDA."
    ) from problem

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
}

_STATE = ort.capi.onnxruntime_pybind11_state
# The runtime's exceptions share no base class of their own.
_RUNTIME_ERRORS = tuple(
    kind for kind in vars(_STATE).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


class OnnxRuntimeEngine:
    """One ONNX graph in one session; on CUDA, inputs may lie on the device.

    Args:
        graph: the ``.onnx`` file.
        device: ``cpu`` or ``cuda:N``.
        precision: the graph's own.
        threads: threads within one ``infer``.
        reason: why this engine was chosen.
        sha256: of the file, which is compared as it is read; None: whatever is in it.

    Raises:
        EngineMissing: the device is not there.
        BundleUnsupported: the file is no graph this runtime can run, or in another precision.
        BundleCorrupt: it is not that of ``sha256``.
        MemoryTooSmall, GpuOutOfMemory: there is too little memory for it.
    """

    def __init__(
        self,
        graph: Path,
        *,
        device: str,
        precision: Precision = "fp32",
        threads: int,
        reason: str,
        sha256: str | None = None,
    ) -> None:
        self._graph = graph
        self._index = int(device.partition(":")[2] or 0)
        self._open = partial(_session, graph, sha256, device, threads)
        self._session = self._open()
        held = self._session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY, "fp32")
        if held != precision:
            raise BundleUnsupported(
                f"{graph} is a graph in {held}, not in {precision}; export the model again."
            )
        self._inputs = {
            i.name: input_spec(str(graph), i.name, i.type, i.shape, _NUMPY_TYPES)
            for i in self._session.get_inputs()
        }
        self._outputs = [o.name for o in self._session.get_outputs()]
        self.info = EngineInfo(
            "onnxruntime",
            device,
            held,
            version(),
            reason,
            takes_device_arrays=device.startswith("cuda"),
        )

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """What the graph takes."""
        return self._inputs

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph; see :class:`~cmamil_sdk.engines.base.Engine`.

        Raises:
            MemoryTooSmall, GpuOutOfMemory, BundleUnsupported, UnexpectedError: the run failed, as
                :func:`~cmamil_sdk.engines.failures.run_failed` says; the engine can still be used.
        """
        try:
            outputs = (self._on_device if self.info.takes_device_arrays else self._on_host)(inputs)
        except _STATE.InvalidArgument as problem:
            raise FieldInvalid(
                f"{self._graph.name} refuses its inputs ({_first_line(problem)}); "
                "give index arrays that point into the features."
            ) from problem
        except _RUNTIME_ERRORS as problem:
            error = run_failed(self.info, self._graph.name, problem, _first_line(problem))
            if isinstance(error, MemoryTooSmall):
                # Its arena would go on from the size that it did not get, and take that for a small bag.
                self._session = self._open()
            raise error from problem
        return dict(zip(self._outputs, outputs, strict=True))

    def _on_host(self, inputs: Inputs) -> list[npt.NDArray[np.float32]]:
        arrays = on_host(self._graph.name, inputs)
        check_inputs(self._graph.name, self._inputs, arrays)
        found: list[npt.NDArray[np.float32]] = self._session.run(None, arrays)
        return found

    def _on_device(self, inputs: Inputs) -> list[npt.NDArray[np.float32]]:
        """By address, so that what lies on the device stays there; the runtime copies what does not."""
        views = {name: ArrayView.of(array) for name, array in inputs.items()}
        check_inputs(self._graph.name, self._inputs, views)
        binding = self._session.io_binding()
        for name, view in views.items():
            place = ("cuda", self._index) if is_on_device(view.owner) else ("cpu", 0)
            binding.bind_input(name, *place, view.dtype, view.shape, view.address)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        found: list[npt.NDArray[np.float32]] = binding.copy_outputs_to_cpu()
        return found

    def warm_up(self, rows: int) -> None:
        """Have the arena and the kernels ready; see :class:`~cmamil_sdk.engines.base.Engine`."""
        self.infer(zeros(self._inputs, rows))

    def memory_bytes(self) -> None:
        """None: the runtime does not tell."""

    def close(self) -> None:
        """Release the session."""
        del self._session


def cuda_available() -> bool:
    """True if this build of onnxruntime has the CUDA provider and the driver shows a device."""
    return "CUDAExecutionProvider" in ort.get_available_providers() and driver_devices() > 0


def version() -> str:
    """The installed onnxruntime's version."""
    return str(ort.__version__)


def check_precision(precision: Precision, device: str) -> None:
    """Refuse a precision in which this runtime computes no graph on a device (EngineMissing)."""
    if precision == "bf16":
        raise EngineMissing(
            "onnxruntime has no bf16 here; use --engine openvino --device cpu, or --precision fp32."
        )
    if precision == "int8" and device != "cpu":
        raise EngineMissing(
            f"int8 runs on CPUs: onnxruntime would compute it in fp32 on {device}; use --precision fp16, "
            "or --device cpu."
        )


def session_options(threads: int) -> ort.SessionOptions:
    """The options of every session here; ``threads`` within one run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Batches come in many sizes: a memory pattern for each would make memory grow without end.
    options.enable_mem_pattern = False
    # Idle threads that spin steal the cores of the threads that decode, and on a busy machine their own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(graph: Path, sha256: str | None, device: str, threads: int) -> ort.InferenceSession:
    options = session_options(threads)
    provider = "CPUExecutionProvider"
    settings: dict[str, str] = {}
    if device.startswith("cuda"):
        if not cuda_available():
            raise EngineMissing(
                "onnxruntime finds no CUDA device here; install onnxruntime-gpu on a machine with an "
                "NVIDIA GPU and its driver, or use --device cpu."
            )
        provider = "CUDAExecutionProvider"
        settings = {
            "device_id": device.partition(":")[2] or "0",
            # TF32 has 10 bits of mantissa: it would be fp32 in name only.
            "use_tf32": "0",
            # Batches come in many sizes: an exhaustive search for each would never pay.
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        source = graph_source(graph, sha256)
        session = ort.InferenceSession(source, options, providers=[(provider, settings)])
    except (_STATE.NoSuchFile, OSError) as problem:
        raise BundleUnsupported(
            f"There is no graph at {graph}; export the model again."
        ) from problem
    except _RUNTIME_ERRORS as problem:
        if (full := no_memory(device, graph.name, problem)) is not None:
            raise full from problem
        raise BundleUnsupported(
            f"{graph} cannot be run by onnxruntime {ort.__version__} on {device} "
            f"({_first_line(problem)}); export the model again."
        ) from problem
    session._model_bytes = None  # it would keep them for a change of providers
    if session.get_providers()[0] != provider:
        raise EngineMissing(
            f"onnxruntime did not start on {device} but on {session.get_providers()[0]}; "
            "check the driver, or use --device cpu."
        )
    return session


def _first_line(problem: Exception) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


__all__ = [
    "OnnxRuntimeEngine",
    "check_precision",
    "cuda_available",
    "session_options",
    "version",
]
