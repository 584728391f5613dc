"""What a load or a run that failed is, whatever the runtime calls it."""

from __future__ import annotations

from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.errors import (
    BundleUnsupported,
    CmamilError,
    GpuOutOfMemory,
    MemoryTooSmall,
    UnexpectedError,
)

_NO_MEMORY = (
    "Failed to allocate",
    "bad_alloc",
    "can't allocate memory",
    "out of memory",
    "_STATUS_ALLOC_FAILED",
)
"""What runtimes, CUDA, cuBLAS and cuDNN say where memory is full; few have an exception for it."""


def no_memory(device: str, graph: str, problem: Exception) -> CmamilError | None:
    """MemoryTooSmall or GpuOutOfMemory, if that is what ``problem`` means; else None."""
    if not (isinstance(problem, MemoryError) or any(said in str(problem) for said in _NO_MEMORY)):
        return None
    if device == "cpu":
        return MemoryTooSmall(
            f"{graph} needs more memory than there is for this process; give it more, or predict smaller "
            "slides, or fewer at a time."
        )
    return GpuOutOfMemory(
        f"{device} has too little free memory for {graph}; end other programs on it, or predict fewer "
        "slides at a time."
    )


def run_failed(info: EngineInfo, graph: str, problem: Exception, said: str) -> CmamilError:
    """What to raise for ``problem``, which inputs of the right types and shapes led to.

    MemoryTooSmall or GpuOutOfMemory where memory is full. Else BundleUnsupported on a CPU, where an
    operator refuses what does not fit the graph, and UnexpectedError on a GPU, which may be of no more
    use. ``said`` is the line of ``problem`` to show.
    """
    if (full := no_memory(info.device, graph, problem)) is not None:
        return full
    if info.device == "cpu":
        return BundleUnsupported(
            f"{graph} cannot be run by {info.name} {info.version} on what it was given ({said}); export "
            "the model again, or use another --engine."
        )
    return UnexpectedError(
        f"{graph} failed on {info.label} ({said}); run `cmamil verify` on its bundle, or use --device "
        "cpu."
    )


__all__ = ["no_memory", "run_failed"]
