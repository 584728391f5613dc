"""One process at a time writes into a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmamil_sdk.errors import OutputExists
from cmamil_sdk.locks import Locks, holder_of

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
    lock = Locks(stale_s=0).take(run / LOCK_FILE)
    if lock is None:
        raise OutputExists(
            f"{run} is being written by {holder_of(run / LOCK_FILE)}; wait for it or stop it, or name "
            "another directory."
        )
    with lock:
        yield


__all__ = ["LOCK_FILE", "sole_writer"]
