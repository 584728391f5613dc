"""ONNX graphs of one input on OpenVINO's CPU plugin, in the precision that is asked for or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs, Precision
from cmamil_sdk.engines.device_array import on_host
from cmamil_sdk.engines.failures import run_failed
from cmamil_sdk.engines.graphs import graph_source
from cmamil_sdk.engines.inputs import InputSpec, check_inputs, input_spec, zeros
from cmamil_sdk.errors import BundleUnsupported, EngineMissing
from cmamil_sdk.machine import available_cores

# OpenVINO imports its model converter, which reports its use to its makers. Hidden from it, the
# package that does so stays out of this process.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
try:
    import openvino as ov
except ImportError as problem:
    raise EngineMissing("openvino is not installed; install cmamil-sdk[cpu].") from problem

from cmamil_sdk.engines.openvino_form import forms_of, has_form  # noqa: E402

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
Prepare = Callable[[ov.Model], ov.Model]

_LAYERS = ("Convolution", "FullyConnected", "MatMul")
_INT8_TYPES = ("i8", "u8")


class OpenVinoEngine:
    """One ONNX graph, compiled for this processor; that of an encoder in forms for so many tiles each.

    A call is cut by them, the largest first. Each gives the same bits, which is looked at when they are
    loaded: where a processor's kernels do not, every tile is computed by itself.

    Args:
        graph: the ``.onnx`` file.
        precision: of the arithmetic; int8 is that of the graph.
        threads: threads within one ``infer``.
        callers: threads that call ``infer`` at a time, each with a stream of its own; more than these
            wait for each other. Default: one per core.
        reason: why this engine was chosen.
        sha256: of the file, which is compared as it is read; None: whatever is in it.

    Raises:
        EngineMissing: this processor does not have the precision.
        BundleUnsupported: the file is no graph of one input that this runtime can run.
        BundleCorrupt: it is not that of ``sha256``.
    """

    def __init__(
        self,
        graph: Path,
        *,
        precision: Precision,
        threads: int,
        callers: int | None = None,
        reason: str,
        sha256: str | None = None,
    ) -> None:
        check_precision(precision)
        self._graph = graph
        model = read_model(graph, sha256)
        # Index arrays that point nowhere would be read as zeros, and axes have no names to compare.
        if len(model.inputs) != 1:
            raise BundleUnsupported(
                f"{graph} has {len(model.inputs)} inputs, openvino runs graphs of one, which encoders "
                "are; use --engine onnxruntime."
            )
        self._inputs = input_specs(model, graph)
        settings = _settings(precision, callers or available_cores(), threads)
        try:
            self._ways = _compiled(model, precision, settings)
            agreed = _agreeing(self._ways)
        except RuntimeError as problem:
            raise _unusable(graph, problem) from problem
        if agreed != self._ways:
            self._ways = agreed
            reason = f"{reason}; tile by tile, as tiles beside it change a tile's bits here"
        _check_in_use(self._ways[0].compiled, graph, precision)
        self.info = EngineInfo("openvino", "cpu", precision, version(), reason)

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph; see :class:`~cmamil_sdk.engines.base.Engine`.

        Raises:
            MemoryTooSmall, BundleUnsupported: the run failed, as
                :func:`~cmamil_sdk.engines.failures.run_failed` says; the engine can still be used.
        """
        arrays = on_host(self._graph.name, inputs)
        check_inputs(self._graph.name, self._inputs, arrays)
        ((name, array),) = arrays.items()
        try:
            shares = self._shares(np.ascontiguousarray(array))
            parts = [requests.infer({name: part}) for requests, part in shares]
        except (MemoryError, RuntimeError) as problem:
            raise run_failed(self.info, self._graph.name, problem, last_line(problem)) from problem
        found = parts[0]
        if len(parts) > 1:
            found = {output: np.concatenate([part[output] for part in parts]) for output in found}
        self._check_rows(found, len(array))
        return found

    def _shares(self, array: npt.NDArray[Any]) -> Iterator[tuple[_Requests, npt.NDArray[Any]]]:
        """Which rows go where."""
        start = 0
        for requests in self._ways:
            tiles = requests.tiles
            if tiles is None:
                yield requests, array
                return
            while start + tiles <= len(array):
                yield requests, array[start : start + tiles]
                start += tiles

    def _check_rows(self, outputs: dict[str, npt.NDArray[np.float32]], rows: int) -> None:
        """With one thread, OpenVINO answers memory that ran out with what it found in its outputs."""
        for name, values in outputs.items():
            if values.ndim and len(values) != rows:
                raise BundleUnsupported(
                    f"{self._graph.name} on openvino gave {len(values)} rows of {name} for {rows}: it is "
                    "no encoder, or memory ran out; give this process more, or use --engine onnxruntime."
                )

    def warm_up(self, rows: int) -> None:
        """Run one row, and so many; see :class:`~cmamil_sdk.engines.base.Engine`."""
        for count in {1, rows}:
            self.infer(zeros(self._inputs, count))

    def memory_bytes(self) -> None:
        """None: the runtime does not tell; weights may be shared or laid out anew."""

    def close(self) -> None:
        """Release the graph."""
        self._ways = []


class _Requests:
    """A compiled graph, and its idle requests; ``tiles`` is how many it takes, None any number."""

    def __init__(self, compiled: ov.CompiledModel, tiles: int | None) -> None:
        self.compiled = compiled
        self.tiles = tiles
        self._idle: list[ov.InferRequest] = []

    def infer(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph on contiguous arrays."""
        # A request serves one call at a time; list.pop and append are atomic.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        results = request.infer(inputs, share_inputs=True)
        self._idle.append(request)  # one that failed is not used again
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
    model: ov.Model, graph: Path, precision: Precision, *, streams: int, part: Prepare
) -> ov.CompiledModel:
    """Compile what ``part`` makes of a copy of a graph, for so many calls of one thread each at a time.

    Raises:
        BundleUnsupported: this runtime cannot run it.
        EngineMissing: this processor does not have the precision.
    """
    check_precision(precision)
    settings = _settings(precision, streams, threads=1)
    try:
        compiled = _core().compile_model(part(model.clone()), "CPU", settings)
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem
    _check_in_use(compiled, graph, precision)
    return compiled


@cache
def _core() -> ov.Core:
    return ov.Core()


def read_model(graph: Path, sha256: str | None) -> ov.Model:
    """A graph, with the bytes of ``sha256`` if that is given.

    Raises:
        BundleUnsupported: this runtime cannot read it.
        BundleCorrupt: it has other bytes.
    """
    source = graph_source(graph, sha256)
    if source == graph and not graph.is_file():
        raise BundleUnsupported(f"There is no graph at {graph}; export the model again.")
    try:
        return _core().read_model(source)
    except RuntimeError as problem:
        raise _unusable(graph, problem) from problem


def input_specs(model: ov.Model, graph: Path) -> dict[str, InputSpec]:
    """What a model of ``graph`` takes; axes have no names."""
    specs = {}
    for port in model.inputs:
        shape = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
        kind, name = port.element_type.get_type_name(), port.any_name
        specs[name] = input_spec(str(graph), name, kind, shape, _NUMPY_TYPES)
    return specs


def _settings(precision: Precision, streams: int, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # The threads that infer also decode, and may share the machine with other processes.
        "ENABLE_CPU_PINNING": False,
    }


def _compiled(model: ov.Model, precision: Precision, settings: dict[str, Any]) -> list[_Requests]:
    """The forms of a model, or where it has none the model itself."""

    def compile_model(each: ov.Model) -> ov.CompiledModel:
        return _core().compile_model(each, "CPU", settings)

    if not has_form(model):
        return [_Requests(compile_model(model), None)]
    forms = forms_of(model, _BYTES[precision])
    return [_Requests(compile_model(form), int(form.input().get_shape()[0])) for form in forms]


def _agreeing(ways: list[_Requests]) -> list[_Requests]:
    """The same if a tile comes out the same, to the bit, of each; else only the last, of one tile.

    Looked at are the first and the last tiles of a call: a kernel may do those that are left differently.
    """
    if len(ways) == 1:
        return ways
    port = ways[0].compiled.input()
    drawn = np.random.default_rng(0).integers(0, 256, tuple(port.get_shape()), dtype=np.uint8)
    expected = ways[0].infer({port.any_name: drawn})

    def agrees(way: _Requests, rows: slice) -> bool:
        found = way.infer({port.any_name: drawn[rows]})
        return all(
            np.array_equal(values, expected[name][rows], equal_nan=True)
            for name, values in found.items()
        )

    sizes = [(way, int(way.compiled.input().get_shape()[0])) for way in ways[1:]]
    parts = [(way, rows) for way, n in sizes for rows in (slice(n), slice(-n, None))]
    return ways if all(agrees(way, rows) for way, rows in parts) else ways[-1:]


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
        f"{graph} cannot be run by openvino {version()} ({last_line(problem)}); "
        "export the model again, or use --engine onnxruntime."
    )


def last_line(problem: Exception) -> str:
    """The first lines name places in OpenVINO's source."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


__all__ = [
    "OpenVinoEngine",
    "check_precision",
    "compile_part",
    "input_specs",
    "last_line",
    "precisions",
    "read_model",
    "version",
]
