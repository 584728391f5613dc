"""Choose an engine and a device, and say why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from cmamil_sdk.engines.base import TENSORRT, Engine, EngineName, Precision
from cmamil_sdk.engines.cuda import driver_devices
from cmamil_sdk.engines.graphs import is_split, stored_graph
from cmamil_sdk.engines.plans import PLAN_PRECISIONS
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_About = dict[str, str | bool]
_LIMITS: dict[Precision, str] = {
    "fp16": ", where the bundle holds it; on a CPU slower than fp32",
    "int8": ", where the bundle holds it",
}


@dataclass(frozen=True)
class EngineChoice:
    """An engine and a device, and why these; ``chosen`` if it was not named."""

    engine: str
    device: str
    reason: str
    chosen: bool


def load_engine(
    graph: Path,
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "fp32",
    threads: int = 1,
    callers: int | None = None,
    engine_cache: Path | None = None,
    reason: str | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Engine:
    """Load a graph.

    Args:
        graph: the ``.onnx`` file in fp32; those in fp16 and int8 lie beside it
            (:func:`~cmamil_sdk.engines.graphs.graph_in`), and an aggregator's parts for bf16
            (:func:`~cmamil_sdk.engines.graphs.split_graphs`).
        engine: ``auto`` or the name of an engine; ``auto`` never takes one of TensorRT, and torch only
            for a CUDA device that onnxruntime has no provider for.
        device: ``auto`` (a CUDA device where the engine has one, else the CPU), ``cpu``, ``cuda:N``.
        precision: a :data:`~cmamil_sdk.engines.base.Precision`; gates may choose one, of encoders
            (:func:`~cmamil_sdk.engines.gated.open_encoder`) and aggregators
            (:func:`~cmamil_sdk.bundle.aggregator.open_aggregator`).
        threads: threads within one call of ``infer``.
        callers: threads that call ``infer`` at a time; default one per core. Changes no result.
        engine_cache: where TensorRT finds plans beside those of the graph's bundle.
        reason: what :class:`~cmamil_sdk.engines.base.EngineInfo` gives as the reason; default: why
            engine and device were chosen.
        hashes: sha256 by name of the graph, those beside it and their plans, as their bundle's manifest
            lists them: what runs is what was compared with them. None: the graph is in no bundle.

    Raises:
        FieldInvalid: an unknown engine, device or precision.
        EngineMissing: what was asked for is not available here, or there is no graph in ``precision``.
        BundleUnsupported: the graph cannot be run.
        BundleCorrupt: a graph or plan that a manifest lists is missing or changed.
    """
    kind = known_precision(precision)
    choice = _able(choose_engine(engine, device), kind)
    graph = stored_graph(graph, kind, hashes)
    for runtime in TENSORRT:
        if choice.engine == runtime:
            from cmamil_sdk.engines.tensorrt import open_tensorrt  # noqa: PLC0415

            return open_tensorrt(
                graph,
                runtime=runtime,
                device=choice.device,
                precision=kind,
                engine_cache=engine_cache,
                reason=reason,
                hashes=hashes,
            )
    sha256 = None if hashes is None else hashes[graph.name]

    def load(name: str, why: str) -> Engine:
        if name == "openvino":
            from cmamil_sdk.engines.openvino import OpenVinoEngine  # noqa: PLC0415

            if kind == "bf16" and is_split(graph, hashes):
                from cmamil_sdk.engines.split import SplitEngine  # noqa: PLC0415

                return SplitEngine(graph, threads=threads, reason=why, hashes=hashes)
            return OpenVinoEngine(
                graph, precision=kind, threads=threads, callers=callers, reason=why, sha256=sha256
            )
        if name == "torch":
            from cmamil_sdk.engines.torch import TorchEngine  # noqa: PLC0415

            return TorchEngine(
                graph,
                device=choice.device,
                precision=kind,
                threads=threads,
                reason=why,
                sha256=sha256,
            )
        from cmamil_sdk.engines.onnxruntime import (  # noqa: PLC0415
            OnnxRuntimeEngine,
            check_precision,
        )

        check_precision(kind, choice.device)
        return OnnxRuntimeEngine(
            graph, device=choice.device, precision=kind, threads=threads, reason=why, sha256=sha256
        )

    try:
        return load(choice.engine, reason or choice.reason)
    except BundleUnsupported as problem:
        if not choice.chosen or choice.engine == "onnxruntime":
            raise
        why = str(problem).partition(";")[0].replace(str(graph), graph.name)
        return load("onnxruntime", f"{choice.reason}, but {why}")


def choose_engine(engine: str, device: str) -> EngineChoice:
    """The engine and device to use; what was asked for is never exchanged for another.

    Raises:
        FieldInvalid: an unknown engine or device.
        EngineMissing: the engine is not installed, or does not run on such a device.
    """
    if engine != "auto" and engine not in ENGINES:
        raise FieldInvalid(f"--engine {engine} is unknown; choose auto or {', '.join(ENGINES)}.")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise FieldInvalid(f"--device {device} is unknown; choose auto, cpu or cuda:N.")
    if device == "cuda":
        device = "cuda:0"
    if engine in TENSORRT:
        where = "cuda:0" if device == "auto" else device
        return EngineChoice(engine, where, "asked for", chosen=False)
    if engine == "openvino" and device.startswith("cuda"):
        raise EngineMissing(f"openvino runs on the CPU, not on {device}; use --device cpu.")
    if engine == "openvino" or (engine != "auto" and device != "auto"):
        where = "cpu" if device == "auto" else device
        return EngineChoice(engine, where, "asked for", chosen=False)
    if engine == "torch":
        where, why = ("cuda:0", "finds") if _torch_cuda() else ("cpu", "does not find")
        return EngineChoice(engine, where, f"auto: torch {why} a CUDA device", chosen=False)
    return _automatic(device, chosen=engine == "auto")


def _automatic(device: str, *, chosen: bool) -> EngineChoice:
    """``chosen``: the engine is free as well, else it is onnxruntime."""
    if device != "cpu" and _cuda():
        where = "cuda:0" if device == "auto" else device
        found = "a CUDA device" if device == "auto" else f"{device} was asked for"
        return EngineChoice("onnxruntime", where, f"auto: {found}", chosen)
    if device != "cpu" and chosen and _torch_cuda():
        where = "cuda:0" if device == "auto" else device
        reason = f"auto: torch finds {where}, for which onnxruntime has no provider"
        return EngineChoice("torch", where, reason, chosen)
    if device.startswith("cuda"):  # onnxruntime says what it lacks
        return EngineChoice("onnxruntime", device, f"auto: {device} was asked for", chosen)
    lead = "auto: the CPU was asked for" if device == "cpu" else "auto: no CUDA provider"
    if not chosen:
        return EngineChoice("onnxruntime", "cpu", lead, chosen)
    lacking = _why_no_openvino()
    if lacking is not None:
        return EngineChoice("onnxruntime", "cpu", f"{lead}, {lacking}", chosen)
    reason = f"{lead}, openvino is installed, x86 processor"
    return EngineChoice("openvino", "cpu", reason, chosen)


def _able(choice: EngineChoice, precision: Precision) -> EngineChoice:
    """The same, but where the engine was free and does not have the precision, the one that has."""
    if precision != "fp16":
        return choice
    if choice.chosen and choice.engine == "openvino":
        reason = f"{choice.reason}, but without fp16"
        choice = replace(choice, engine="onnxruntime", reason=reason)
    if choice.engine == "onnxruntime" and choice.device == "cpu":
        slow = "a CPU casts fp16 to fp32 and back, which is slower than fp32"
        return replace(choice, reason=f"{choice.reason}; {slow}")
    return choice


def known_precision(precision: str) -> Precision:
    """``precision`` if it is one (FieldInvalid)."""
    for known in PRECISIONS:
        if precision == known:
            return known
    raise FieldInvalid(
        f"--precision {precision} is unknown; choose auto or {', '.join(PRECISIONS)}."
    )


def engine_precisions(engine: str, device: str = "cpu") -> tuple[Precision, ...]:
    """The precisions in which an installed engine computes on a device here, given the graph."""
    if engine == "torch":
        if not device.startswith("cuda"):
            return ("fp32",)
        from cmamil_sdk.engines.torch import precisions as on_cuda  # noqa: PLC0415

        return on_cuda(device)
    if engine == "openvino":
        from cmamil_sdk.engines.openvino import precisions  # noqa: PLC0415

        return precisions()
    return PLAN_PRECISIONS if engine in TENSORRT else ("fp32", "fp16", "int8")


def why_no_bf16(engine: str) -> str:
    """Why an engine that does not compute in bf16 here does not."""
    if engine == "openvino":
        return "this processor has neither AVX-512 BF16 nor AMX"
    if engine == "torch":
        return "torch computes in bf16 on CUDA devices of compute capability 8.0 alone"
    return f"{engine} has no bf16"


def available_engines() -> dict[str, dict[str, str | bool]]:
    """For each engine: ``available``, ``version``, ``why`` and ``fix``."""
    from cmamil_sdk.engines.tensorrt import available  # noqa: PLC0415

    return {
        "onnxruntime": _about(_about_onnxruntime),
        "openvino": _about(_about_openvino),
        "torch": _about(_about_torch),
        **{runtime: available(runtime) for runtime in TENSORRT},
    }


def available_precisions() -> dict[str, dict[str, str | bool]]:
    """For each precision of an encoder: ``available``, ``version`` (empty), ``why`` and ``fix``."""
    engines = [name for name, about in available_engines().items() if about["available"]]
    found: dict[str, _About] = {}
    for precision in PRECISIONS:
        having = [name for name in engines if precision in engine_precisions(name, _place(name))]
        found[precision] = {"available": bool(having), "version": "", "why": "", "fix": ""}
        if having:
            found[precision]["why"] = f"by {', '.join(having)}{_LIMITS.get(precision, '')}"
        elif precision == "bf16" and "openvino" in engines:
            found[precision]["why"] = why_no_bf16("openvino")
            found[precision]["fix"] = "use a processor that has one of them; until then, fp32"
        else:
            needed = "openvino" if precision == "bf16" else "onnxruntime"
            found[precision]["why"] = f"{needed} is not installed"
            found[precision]["fix"] = "install cmamil-sdk[cpu]"
    return found


def _about(ask: Callable[[], tuple[str, str]]) -> _About:
    try:
        version, why = ask()
    except EngineMissing as problem:
        lacking, _, fix = str(problem).partition("; ")
        return {"available": False, "version": "", "why": lacking, "fix": fix}
    return {"available": True, "version": version, "why": why, "fix": ""}


def _about_onnxruntime() -> tuple[str, str]:
    from cmamil_sdk.engines.onnxruntime import version  # noqa: PLC0415

    return version(), "CPU and CUDA" if _cuda() else "CPU"


def _about_openvino() -> tuple[str, str]:
    from cmamil_sdk.engines.openvino import version  # noqa: PLC0415

    return version(), f"CPU, {', '.join(engine_precisions('openvino'))}"


def _about_torch() -> tuple[str, str]:
    """Without a driver it is not imported, which takes seconds."""
    try:
        versions = [importlib.metadata.version(package) for package in ("torch", "onnx")]
        there = all(importlib.util.find_spec(package) for package in ("torch", "onnx"))
    except ImportError:  # also where a package is not known at all
        there = False
    if not there:
        raise EngineMissing("torch or onnx is not installed; install cmamil-sdk[torch].")
    return versions[0], "CPU and CUDA" if _torch_cuda() else "CPU"


def _place(engine: str) -> str:
    return "cuda:0" if engine == "torch" and _torch_cuda() else "cpu"


def _torch_cuda() -> bool:
    """Whether torch is installed and finds a CUDA device."""
    if not driver_devices():
        return False
    try:
        from cmamil_sdk.engines.torch import cuda_available  # noqa: PLC0415
    except EngineMissing:
        return False
    return cuda_available()


def _cuda() -> bool:
    try:
        from cmamil_sdk.engines.onnxruntime import cuda_available  # noqa: PLC0415
    except EngineMissing:
        return False
    return cuda_available()


def _why_no_openvino() -> str | None:
    """Why ``auto`` does not take OpenVINO here; None if it does."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"a {platform.machine()} processor, on which openvino is not measured"
    return None if _about(_about_openvino)["available"] else "openvino is not installed"


__all__ = [
    "ENGINES",
    "PRECISIONS",
    "EngineChoice",
    "available_engines",
    "available_precisions",
    "choose_engine",
    "engine_precisions",
    "known_precision",
    "load_engine",
    "why_no_bf16",
]
