"""What this process may use of the machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores this process may run on, which in a container are often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


__all__ = ["available_cores"]
