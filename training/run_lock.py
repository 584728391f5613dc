"""One process at a time writes into a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cmamil_sdk.errors import OutputExists

LOCK_FILE = ".lock"
"""In a run directory while it is written: who does. After a kill it is left, and means nothing."""


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Keep all others from writing into ``run``, which is made if it is not there.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        OutputExists: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = _locked(run)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        (run / LOCK_FILE).unlink(missing_ok=True)
        file.close()


def _locked(run: Path) -> IO[str]:
    """The lock file, open and held."""
    path = run / LOCK_FILE
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read() or "another process"
            raise OutputExists(
                f"{run} is being written by {holder}; wait for it or stop it, or name another "
                "directory."
            ) from None
        if _is_at(path, file):
            return file
        file.close()  # its holder has just removed it, and another process may lock the next one


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


__all__ = ["LOCK_FILE", "sole_writer"]
