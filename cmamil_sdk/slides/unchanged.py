"""A slide that stays the same file for as long as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideNotFound

_Identity = tuple[int, int, int, int]


@contextmanager
def unchanged(path: Path) -> Iterator[Callable[[], None]]:
    """Refuse what was read within the block if the file at ``path`` became another meanwhile.

    The check is made at the end of the block, and wherever the function is called that the block gets.
    Told by device, inode, size and time of change. Several threads open a slide one after the other, and
    it is hashed apart from that: without this check, the result could be of two slides, or bear the hash
    of another. Of a slide in several files (MRXS, VMS, DICOM) only the named one is watched.

    Raises:
        SlideCorrupt: it was replaced or written to; also in place of an error that followed from that.
        SlideNotFound: it is gone; likewise.
    """
    before = _identity(path)

    def check() -> None:
        _check(path, before, None)

    try:
        yield check
    except (CmamilError, OSError) as problem:
        _check(path, before, problem)
        raise
    check()


def _check(path: Path, before: _Identity | None, problem: Exception | None) -> None:
    now = _identity(path)
    if now == before:
        return
    if now is None:
        raise SlideNotFound(
            f"{path} vanished while it was being read; bring it back and start again."
        ) from problem
    raise SlideCorrupt(
        f"{path} changed while it was being read; start again when it is complete."
    ) from problem


def _identity(path: Path) -> _Identity | None:
    """What tells a file from another; None if there is none that could be looked at."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


__all__ = ["unchanged"]
