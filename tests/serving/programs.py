"""Servers in processes of their own, and what the system knows of a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmamil_sdk.serving.config import ServerConfig

_PROGRAM = """
import sys
{first}
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import serve
config = ServerConfig.model_validate_json(sys.argv[1])
serve(config, on_ready=lambda port: print(port, flush=True))
"""


def start_program(
    config: ServerConfig, *, within: Sequence[str] = (), first: str = ""
) -> tuple[subprocess.Popen[str], int]:
    """Start a server; returns when it is ready, with its port.

    ``within`` is a command that runs the one after it, ``first`` a line of Python before all others.
    """
    program = subprocess.Popen(
        [*within, sys.executable, "-c", _PROGRAM.format(first=first), config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, int(program.stdout.readline())


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended
            found += map(int, (thread / "children").read_text().split())
    return found


def running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(frozen=True)
class Held:
    """What a process, or several, hold at one moment.

    Attributes:
        memory_mib: resident.
        shared: mappings of shared memory that has no file on a disk.
    """

    memory_mib: float = 0.0
    files: int = 0
    threads: int = 0
    shared: int = 0
    processes: int = 0

    def __add__(self, other: Held) -> Held:
        mine, theirs = vars(self), vars(other)
        return Held(**{name: mine[name] + theirs[name] for name in mine})


def held_by(pid: int) -> Held:
    """Look at a process; one that has just ended holds nothing."""
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        maps = (folder / "maps").read_text()
        return Held(
            memory_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            files=len(list((folder / "fd").iterdir())),
            threads=len(list((folder / "task").iterdir())),
            shared=maps.count("/dev/shm/") + maps.count("/memfd:"),
            processes=1,
        )
    except (FileNotFoundError, ProcessLookupError):
        return Held()
