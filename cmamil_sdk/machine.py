"""What this process may use of the machine, and what it uses."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path


def available_cores() -> int:
    """Cores this process may run on, which in a container are often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """What the processor calls itself; ``unknown`` where it does not say."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_rss_mb(pid: int | None = None) -> float:
    """The most memory this process has held since it started, MB (10^6 bytes).

    Of a child of that ``pid`` instead; 0 where the system does not tell.
    """
    # Linux hands ru_maxrss of the parent down to its children; VmHWM is this program's own.
    peak = _status_mb("VmHWM", pid)
    if pid is not None:
        return peak or 0.0
    if peak is not None:
        return peak
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / 1e6 if sys.platform == "darwin" else usage * 1024 / 1e6


def rss_mb(pid: int | None = None) -> float:
    """Memory held now, otherwise as :func:`peak_rss_mb`; where only the peak is told, that."""
    now = _status_mb("VmRSS", pid)
    return peak_rss_mb(pid) if now is None else now


def return_free_memory() -> None:
    """Give the system what this process has freed; of no effect where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_mb(name: str, pid: int | None) -> float | None:
    status = Path(f"/proc/{'self' if pid is None else pid}/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


__all__ = ["available_cores", "peak_rss_mb", "processor_name", "return_free_memory", "rss_mb"]
