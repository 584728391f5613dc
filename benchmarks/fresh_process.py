"""Measurements in a process of their own, whose memory and threads nothing before has touched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from cmamil_sdk.errors import MemoryTooSmall


def in_fresh_process(module: str, *arguments: str, what: str) -> dict[str, Any]:
    """The JSON document that ``python -m module arguments`` prints.

    Args:
        module: with a ``__main__`` part.
        arguments: as text.
        what: is measured, for the message.

    Raises:
        MemoryTooSmall: the process was ended.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise MemoryTooSmall(
            f"{what} ended with status {done.returncode}, as when memory runs out; close other programs, "
            "or measure something smaller."
        )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


__all__ = ["in_fresh_process"]
