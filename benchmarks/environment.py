"""Where a measurement was made: a figure without its machine and versions says nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmamil_sdk.machine import available_cores, processor_name

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
        "packages": _versions(),
        "thread_variables": {n: os.environ[n] for n in _THREAD_VARIABLES if n in os.environ},
    }


def load_average() -> float | None:
    """Runnable tasks on the whole machine, mean of the last minute; None where it is not told."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def peak_rss_mb() -> float:
    """The most memory this process has held since it started, MB (10^6 bytes)."""
    # Linux hands ru_maxrss of the parent down to its children; VmHWM is this program's own.
    peak = _status_mb("VmHWM")
    if peak is not None:
        return peak
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6


def rss_mb() -> float:
    """Memory this process holds now, MB (10^6 bytes); where only the peak is told, that."""
    now = _status_mb("VmRSS")
    return peak_rss_mb() if now is None else now


def _status_mb(name: str) -> float | None:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


__all__ = ["describe_machine", "load_average", "peak_rss_mb", "rss_mb"]
