"""Aggregators in bf16 on a CPU: products of features by OpenVINO, all else by onnxruntime in float32."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo, Inputs
from cmamil_sdk.engines.device_array import on_host
from cmamil_sdk.engines.failures import run_failed
from cmamil_sdk.engines.graphs import split_graphs
from cmamil_sdk.engines.inputs import InputSpec, check_inputs, zeros
from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine
from cmamil_sdk.engines.openvino import (
    check_precision,
    input_specs,
    last_line,
    read_model,
    version,
)
from cmamil_sdk.engines.openvino_rows import EXACT_BELOW_ROWS, RowProducts, multiply
from cmamil_sdk.errors import BundleUnsupported


class SplitEngine:
    """The two parts of an aggregator's graph: the products of its features with weights, and the rest.

    Products are most of the arithmetic, and lose little by rounding. Those of a scale of few tiles
    (:data:`~cmamil_sdk.engines.openvino_rows.EXACT_BELOW_ROWS`), softmax, pooling and what weighs tiles
    stay in float32; the rest is onnxruntime's, which also refuses an index that points nowhere.

    Args:
        graph: the ``.onnx`` file beside which the parts lie
            (:func:`~cmamil_sdk.engines.graphs.split_graphs`).
        threads: threads within one ``infer``.
        reason: why this engine was chosen.
        hashes: sha256 by name, of the parts as well, which are compared as they are read; None: whatever
            is in them.

    Raises:
        EngineMissing: this processor has no bf16, or a runtime is not installed.
        BundleUnsupported: a part is missing, or a runtime cannot run it.
        BundleCorrupt: a part is not that of ``hashes``.
    """

    def __init__(
        self,
        graph: Path,
        *,
        threads: int,
        reason: str,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        check_precision("bf16")
        self._graph = graph
        self._threads = threads
        rest, products = split_graphs(graph)
        sha256s = [None if hashes is None else hashes[part.name] for part in (rest, products)]
        self._rest = OnnxRuntimeEngine(
            rest, device="cpu", precision="bf16", threads=threads, reason=reason, sha256=sha256s[0]
        )
        model = read_model(products, sha256s[1])
        specs = input_specs(model, products)
        self._names = {name: _products_of(name, rest, self._rest.inputs) for name in specs}
        self._specs = _whole_specs(specs, self._names, self._rest.inputs)

        def compiled(name: str) -> RowProducts:
            names = self._names[name]
            return RowProducts(model, products, name, names, "bf16", streams=threads)

        with ThreadPoolExecutor() as pool:  # compiling is most of the time that loading takes
            self._products = dict(zip(specs, pool.map(compiled, specs), strict=True))
        versions = f"{version()}, onnxruntime {self._rest.info.version}"
        self.info = EngineInfo("openvino", "cpu", "bf16", versions, reason)

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run both parts; see :class:`~cmamil_sdk.engines.base.Engine`.

        Raises:
            MemoryTooSmall, BundleUnsupported: the run failed, as
                :func:`~cmamil_sdk.engines.failures.run_failed` says; the engine can still be used.
        """
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
        try:
            answers = multiply(jobs, self._threads, exact_below_rows)
        except (MemoryError, RuntimeError) as problem:
            raise run_failed(self.info, self._graph.name, problem, last_line(problem)) from problem
        for names, products in zip(self._names.values(), answers, strict=True):
            arrays.update(zip(names, products, strict=True))
        return self._rest.infer({name: arrays[name] for name in self._rest.inputs})

    def warm_up(self, rows: int) -> None:
        """Run one row, and so many; see :class:`~cmamil_sdk.engines.base.Engine`."""
        for count in {1, rows}:
            self.infer(zeros(self._specs, count))

    def memory_bytes(self) -> None:
        """None: the runtimes do not tell."""

    def close(self) -> None:
        """Release both parts."""
        self._products = {}
        self._rest.close()


def _products_of(features: str, rest: Path, taken: Mapping[str, InputSpec]) -> list[str]:
    found = [name for name in taken if name.rpartition(".")[0] == features]
    if not found:
        raise BundleUnsupported(f"{rest} takes no product of {features}; export the model again.")
    return found


def _whole_specs(
    features: Mapping[str, InputSpec],
    products: Mapping[str, list[str]],
    rest: Mapping[str, InputSpec],
) -> dict[str, InputSpec]:
    """Inputs of both parts together: rows of features are called as those of their products."""
    named = {
        name: replace(spec, shape=[rest[products[name][0]].shape[0], *spec.shape[1:]])
        for name, spec in features.items()
    }
    between = {name for names in products.values() for name in names}
    return named | {name: spec for name, spec in rest.items() if name not in between}


__all__ = ["SplitEngine"]
