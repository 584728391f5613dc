"""Choose an engine and a device, and say why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from cmamil_sdk.engines.base import Engine
from cmamil_sdk.engines.plans import RuntimeName
from cmamil_sdk.errors import EngineMissing, FieldInvalid

TENSORRT: tuple[RuntimeName, ...] = get_args(RuntimeName)
ENGINES = ("onnxruntime", *TENSORRT)


def load_engine(
    graph: Path,
    *,
    engine: str = "auto",
    device: str = "auto",
    threads: int = 1,
    engine_cache: Path | None = None,
) -> Engine:
    """Load a graph.

    Args:
        graph: the ``.onnx`` file.
        engine: ``auto`` or the name of an engine; ``auto`` never takes one of TensorRT.
        device: ``auto`` (a CUDA device where the engine has one, else the CPU), ``cpu``, ``cuda:N``.
        threads: threads within one call of ``infer``.
        engine_cache: where TensorRT finds plans beside those of the graph's bundle.

    Raises:
        FieldInvalid: an unknown engine or device.
        EngineMissing: what was asked for is not available here.
        BundleUnsupported: the graph cannot be run.
        BundleCorrupt: a plan that a manifest lists is missing or changed.
    """
    if engine not in ("auto", *ENGINES):
        raise FieldInvalid(f"--engine {engine} is unknown; choose auto or {', '.join(ENGINES)}.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise FieldInvalid(f"--device {device} is unknown; choose auto, cpu or cuda:N.")
    for runtime in TENSORRT:
        if engine == runtime:
            from cmamil_sdk.engines.tensorrt import open_tensorrt  # noqa: PLC0415

            return open_tensorrt(graph, runtime=runtime, device=device, engine_cache=engine_cache)
    from cmamil_sdk.engines.onnxruntime import OnnxRuntimeEngine, cuda_available  # noqa: PLC0415

    if device == "cuda":
        device = "cuda:0"
    if device != "auto":
        return OnnxRuntimeEngine(graph, device=device, threads=threads, reason="asked for")
    chosen, why = ("cuda:0", "a CUDA device") if cuda_available() else ("cpu", "no CUDA provider")
    return OnnxRuntimeEngine(
        graph, device=chosen, threads=threads, reason=f"auto: onnxruntime is installed, {why}"
    )


def available_engines() -> dict[str, dict[str, str | bool]]:
    """For each engine: ``available``, ``version``, ``why`` and ``fix``."""
    from cmamil_sdk.engines.tensorrt import available  # noqa: PLC0415

    return _onnxruntime() | {runtime: available(runtime) for runtime in TENSORRT}


def _onnxruntime() -> dict[str, dict[str, str | bool]]:
    try:
        from cmamil_sdk.engines.onnxruntime import cuda_available, version  # noqa: PLC0415
    except EngineMissing as problem:
        why, _, fix = str(problem).partition("; ")
        return {"onnxruntime": {"available": False, "version": "", "why": why, "fix": fix}}
    why = "CPU and CUDA" if cuda_available() else "CPU"
    return {"onnxruntime": {"available": True, "version": version(), "why": why, "fix": ""}}


__all__ = ["available_engines", "load_engine"]
