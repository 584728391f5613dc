"""The two libraries of TensorRT, whose Python API is the same: one for datacentre GPUs, one for RTX."""

from __future__ import annotations

import importlib
from typing import Any

from cmamil_sdk.engines.base import RuntimeName
from cmamil_sdk.errors import EngineMissing

_MODULES: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[RuntimeName, str] = {
    "tensorrt": "install tensorrt-cu13, whose libraries come from NVIDIA's own package index "
    "(docs/tensorrt.md)",
    "tensorrt-rtx": "install cmamil-sdk[tensorrt-rtx]",
}


def load_library(runtime: RuntimeName) -> Any:
    """Import the module of a runtime.

    Raises:
        EngineMissing: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module(_MODULES[runtime])
    except (ImportError, OSError) as problem:
        raise EngineMissing(
            f"{runtime} cannot be used here ({problem}); {INSTALL[runtime]}."
        ) from problem


def make_logger(library: Any) -> Any:
    """A logger that keeps errors in its list ``errors`` and says nothing."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


__all__ = ["INSTALL", "load_library", "make_logger"]
