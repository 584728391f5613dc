"""Aggregators in bf16 on a CPU: products of features by OpenVINO, all else by onnxruntime in float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs, Precision
from cmamil_sdk.engines.device_array import on_host
from cmamil_sdk.engines.inputs import check_inputs, input_spec
from cmamil_sdk.engines.onnx_parts import OnnxParts
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.engines.openvino import version
from cmamil_sdk.engines.openvino_rows import EXACT_BELOW_ROWS, RowProducts, multiply
from cmamil_sdk.engines.wide_products import LEAST_WIDTH, wide_products
from cmamil_sdk.errors import BundleUnsupported

_NUMPY_TYPES = {name: np.dtype(name) for name in ("float32", "int64")}


class SplitEngine:
    """One graph of an aggregator, cut behind the products of its features with weights.

    These are most of the arithmetic, and lose little by rounding. Those of a scale of few tiles
    (:data:`~cmamil_sdk.engines.openvino_rows.EXACT_BELOW_ROWS`), softmax, pooling and what weighs tiles
    stay in float32; the rest is onnxruntime's, which also refuses an index that points nowhere.

    Args:
        graph: the ``.onnx`` file.
        precision: of the products.
        threads: threads within one ``infer``.
        reason: why this engine was chosen.

    Raises:
        EngineMissing: this processor does not have the precision, or a runtime is not installed.
        BundleUnsupported: the graph has no such products, or a runtime cannot run a part of it.
    """

    def __init__(self, graph: Path, *, precision: Precision, threads: int, reason: str) -> None:
        parts = OnnxParts(graph)
        self._graph = graph
        self._threads = threads
        self._specs = {
            name: input_spec(str(graph), name, port.kind, port.shape, _NUMPY_TYPES)
            for name, port in parts.inputs.items()
        }
        self._names = wide_products(parts)
        if not self._names:
            raise BundleUnsupported(
                f"{graph.name} multiplies no features of {LEAST_WIDTH} numbers or more, which is what "
                f"would gain by {precision}; use --precision fp32."
            )

        def products(name: str) -> RowProducts:
            part = parts.part([name], self._names[name])
            return RowProducts(part, graph, precision, streams=threads)

        with ThreadPoolExecutor() as pool:  # compiling is most of the time that loading takes
            self._products = dict(zip(self._names, pool.map(products, self._names), strict=True))
        cut = [name for names in self._names.values() for name in names]
        self._rest = OnnxRuntimeEngine(
            graph, device="cpu", threads=threads, reason=reason, part=parts.part(cut, parts.outputs)
        )
        versions = f"{version()}, onnxruntime {self._rest.info.version}"
        self.info = EngineInfo("openvino", "cpu", precision, versions, reason)

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph; see :class:`~cmamil_sdk.engines.base.Engine`."""
        return self._infer(inputs, EXACT_BELOW_ROWS)

    def infer_rounded(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """The same without the exception for few tiles: what a test on few tiles has to look at."""
        return self._infer(inputs, 0)

    def _infer(self, inputs: Inputs, exact_below_rows: int) -> dict[str, npt.NDArray[np.float32]]:
        arrays = on_host(self._graph.name, inputs)
        check_inputs(self._graph.name, self._specs, arrays)
        jobs = [
            (products, np.ascontiguousarray(arrays[name]))
            for name, products in self._products.items()
        ]
        answers = multiply(jobs, self._threads, exact_below_rows)
        for names, products in zip(self._names.values(), answers, strict=True):
            arrays.update(zip(names, products, strict=True))
        return self._rest.infer({name: arrays[name] for name in self._rest.input_names})

    def close(self) -> None:
        """Release both parts."""
        self._products = {}
        self._rest.close()


__all__ = ["SplitEngine"]
