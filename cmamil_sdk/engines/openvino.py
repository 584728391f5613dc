"""ONNX graphs of one input on OpenVINO's CPU plugin, in the precision that is asked for or not at all."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs, Precision
from cmamil_sdk.engines.device_array import on_host
from cmamil_sdk.engines.inputs import check_inputs, input_spec
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid
from cmamil_sdk.machine import available_cores

# OpenVINO imports its model converter, which reports its use to its makers. Hidden from it, the
# package that does so stays out of this process.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
try:
    import openvino as ov
except ImportError as problem:
    raise EngineMissing("openvino is not installed; install cmamil-sdk[cpu].") from problem

from cmamil_sdk.engines.openvino_form import form_of, has_form  # noqa: E402

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
}
# A graph in int8 says by itself which of its layers are; the others are computed in fp32.
_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "int8": 1}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
Prepare = Callable[[ov.Model], None]

_LAYERS = ("Convolution", "FullyConnected", "MatMul")
_INT8_TYPES = ("i8", "u8")


class OpenVinoEngine:
    """One ONNX graph, compiled for this processor; an encoder's also in a faster form, for so many tiles.

    The form gives the same bits. Tiles of a call that do not fill it go through the graph as it is.

    Args:
        graph: the ``.onnx`` file.
        precision: of the arithmetic; int8 is that of the graph.
        threads: threads within one ``infer``.
        callers: threads that call ``infer`` at a time, each with a stream of its own; more than these
            wait for each other. Default: one per core.
        reason: why this engine was chosen.

    Raises:
        EngineMissing: this processor does not have the precision.
        BundleUnsupported: the file is no graph of one input that this runtime can run.
    """

    def __init__(
        self,
        graph: Path,
        *,
        precision: Precision,
        threads: int,
        callers: int | None = None,
        reason: str,
    ) -> None:
        check_precision(precision)
        self._graph = graph
        model = _read(graph)
        # Index arrays that point nowhere would be read as zeros, and axes have no names to compare.
        if len(model.inputs) != 1:
            raise BundleUnsupported(
                f"{graph} has {len(model.inputs)} inputs, openvino runs graphs of one, which encoders "
                "are; use --engine onnxruntime."
            )
        port = model.inputs[0]
        shape = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
        kind = port.element_type.get_type_name()
        self._inputs = {
            port.any_name: input_spec(str(graph), port.any_name, kind, shape, _NUMPY_TYPES)
        }
        settings = _settings(precision, callers or available_cores(), threads)
        form = model.clone() if has_form(model) else None
        self._any_number: _Requests | None = _Requests(_compile(model, graph, settings))
        self._form: _Requests | None = None
        if form is not None:
            self._form = _Requests(_compile(_formed(form, graph, precision), graph, settings))
        _check_in_use((self._form or self._any_number).compiled, graph, precision)
        self.info = EngineInfo("openvino", "cpu", precision, version(), reason)

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph; see :class:`~cmamil_sdk.engines.base.Engine`."""
        arrays = on_host(self._graph.name, inputs)
        check_inputs(self._graph.name, self._inputs, arrays)
        ((name, array),) = arrays.items()
        try:
            shares = self._shares(np.ascontiguousarray(array))
            parts = [requests.infer({name: part}) for requests, part in shares]
        except RuntimeError as problem:
            raise FieldInvalid(
                f"{self._graph.name} refuses its inputs ({_last_line(problem)}); "
                "give arrays as the graph takes them."
            ) from problem
        if len(parts) == 1:
            return parts[0]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def _shares(self, array: npt.NDArray[Any]) -> Iterator[tuple[_Requests, npt.NDArray[Any]]]:
        """Which rows go where."""
        assert self._any_number is not None
        whole = 0
        if self._form is not None:
            tiles = self._form.tiles
            whole = len(array) - len(array) % tiles
            for start in range(0, whole, tiles):
                yield self._form, array[start : start + tiles]
        if whole < len(array):
            yield self._any_number, array[whole:]

    def close(self) -> None:
        """Release the graph."""
        self._any_number = self._form = None


class _Requests:
    """A compiled graph, and requests to it that are idle."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled
        self._idle: list[ov.InferRequest] = []

    @property
    def tiles(self) -> int:
        """Of the form: how many it takes."""
        return int(self.compiled.input().get_shape()[0])

    def infer(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph on contiguous arrays."""
        # A request serves one call at a time; list.pop and append are atomic.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            results = request.infer(inputs, share_inputs=True)
        finally:
            self._idle.append(request)
        return {output.any_name: results[output] for output in self.compiled.outputs}


def version() -> str:
    """The installed OpenVINO's version, without its build."""
    return str(ov.__version__).partition("-")[0]


def precisions() -> tuple[Precision, ...]:
    """The precisions that this processor computes in, and not only converts to."""
    found = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in found)


def check_precision(precision: Precision) -> None:
    """Refuse a precision that this processor does not have (EngineMissing)."""
    if precision == "fp16":
        raise EngineMissing(
            "openvino computes in fp16 on no processor that this package knows; use --engine "
            "onnxruntime, or --precision auto."
        )
    if precision not in precisions():
        lacking = " (neither AVX-512 BF16 nor AMX)" if precision == "bf16" else ""
        raise EngineMissing(
            f"This processor has no {precision} arithmetic{lacking}, and openvino would compute in fp32; "
            "use --precision fp32."
        )


def compile_part(
    part: bytes, graph: Path, precision: Precision, *, streams: int, prepare: Prepare
) -> ov.CompiledModel:
    """Compile a part of ``graph``, in ONNX, for so many calls of one thread each at a time.

    ``prepare`` may change the model before.

    Raises:
        BundleUnsupported: this runtime cannot run it.
        EngineMissing: this processor does not have the precision.
    """
    check_precision(precision)
    try:
        model = _core().read_model(io.BytesIO(part))
        prepare(model)
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem
    compiled = _compile(model, graph, _settings(precision, streams, threads=1))
    _check_in_use(compiled, graph, precision)
    return compiled


@cache
def _core() -> ov.Core:
    return ov.Core()


def _read(graph: Path) -> ov.Model:
    if not graph.is_file():
        raise BundleUnsupported(f"There is no graph at {graph}; export the model again.")
    try:
        return _core().read_model(graph)
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem


def _formed(model: ov.Model, graph: Path, precision: Precision) -> ov.Model:
    try:
        return form_of(model, _BYTES[precision])
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem


def _settings(precision: Precision, streams: int, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # The threads that infer also decode, and may share the machine with other processes.
        "ENABLE_CPU_PINNING": False,
    }


def _compile(model: ov.Model, graph: Path, settings: dict[str, Any]) -> ov.CompiledModel:
    try:
        return _core().compile_model(model, "CPU", settings)
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem


def _check_in_use(compiled: ov.CompiledModel, graph: Path, precision: Precision) -> None:
    in_use = _precision_in_use(compiled)
    if in_use != precision:
        raise EngineMissing(
            f"openvino runs {graph.name} in {in_use} here and not in {precision}; "
            f"use --precision {in_use}."
        )


def _precision_in_use(compiled: ov.CompiledModel) -> str:
    """int8 where a layer of the compiled graph is computed in it, else as the plugin says."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        is_layer = "layerType" in facts and facts["layerType"].value in _LAYERS
        if is_layer and facts["runtimePrecision"].value in _INT8_TYPES:
            return "int8"
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return next((name for name, known in _HINTS.items() if known == hint), hint)


def _unusable(graph: Path, problem: Exception) -> BundleUnsupported:
    return BundleUnsupported(
        f"{graph} cannot be run by openvino {version()} ({_last_line(problem)}); "
        "export the model again, or use --engine onnxruntime."
    )


def _last_line(problem: Exception) -> str:
    """The first lines name places in OpenVINO's source."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


__all__ = ["OpenVinoEngine", "check_precision", "compile_part", "precisions", "version"]
