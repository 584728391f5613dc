"""Processor time of this process and of the processes it has started."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from pathlib import Path


def processor_time_s() -> float:
    """Seconds of this process, of its ended children, and on Linux of those that still run.

    A child is counted by what it has used since it was started, so differences are right as long as it is
    waited for when it ends.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = time.process_time() + ended.ru_utime + ended.ru_stime
    if sys.platform != "linux":
        return own
    return own + sum(_time_of(pid) for pid in _children())


def _children() -> list[int]:
    found = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            found += (thread / "children").read_text().split()
        except OSError:  # the thread has ended
            continue
    return [int(pid) for pid in found]


def _time_of(pid: int) -> float:
    """0 for a process that has just ended and been waited for."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0


__all__ = ["processor_time_s"]
