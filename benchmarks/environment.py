"""Where a measurement was made: a figure without its machine and versions says nothing."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

from cmamil_sdk.machine import available_cores, processor_name
from cmamil_sdk.revision import installed_versions

_PACKAGES = (
    "cmamil-sdk",
    "numpy",
    "torch",
    "lightning",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, system, Python, package versions, and variables that set threads."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": installed_versions(_PACKAGES),
        "thread_variables": {n: os.environ[n] for n in _THREAD_VARIABLES if n in os.environ},
    }


def load_average() -> float | None:
    """Runnable tasks on the whole machine, mean of the last minute; None where it is not told."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


__all__ = ["describe_machine", "load_average"]
