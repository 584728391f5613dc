"""A slide that stays the same file for as long as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cmamil_sdk.errors import CmamilError, SlideCorrupt, SlideNotFound
from cmamil_sdk.slides.dicom_series import series_files

_Identity = tuple[int, int, int, int]
_INDEXES = (".vms", ".vmu")
_MAX_INDEX_CHARS = 100_000


@contextmanager
def unchanged(path: Path) -> Iterator[Callable[[], None]]:
    """Refuse what was read within the block if the file at ``path`` became another meanwhile.

    The check is made at the end of the block, and wherever the function is called that the block gets.
    Told by device, inode, size and time of change. Several threads open a slide one after the other, and
    it is hashed apart from that: without this check, the result could be of two slides, or bear the hash
    of another. Of MRXS, VMS, VMU and DICOM slides the files beside that hold the pixels are watched as
    well; other slides in the folder may still be being copied.

    Raises:
        SlideCorrupt: it was replaced or written to; also in place of an error that followed from that.
        SlideNotFound: it is gone; likewise.
    """
    before = _identities(path)

    def check() -> None:
        _check(path, before, None)

    try:
        yield check
    except (CmamilError, OSError) as problem:
        _check(path, before, problem)
        raise
    check()


def _check(path: Path, before: Mapping[Path, _Identity], problem: Exception | None) -> None:
    now = _identities(path)
    if now == before:
        return
    file = next(f for f in (*before, *now) if before.get(f) != now.get(f))
    if file not in now:
        raise SlideNotFound(
            f"{file} vanished while it was being read; bring it back and start again."
        ) from problem
    raise SlideCorrupt(
        f"{file} changed while it was being read; start again when it is complete."
    ) from problem


def _identities(path: Path) -> dict[Path, _Identity]:
    """Of a slide's file and of those that hold the rest of it, as far as they are there."""
    found = {file: _identity(file) for file in (path, *_parts(path))}
    return {file: identity for file, identity in found.items() if identity is not None}


def _parts(path: Path) -> list[Path]:
    """Files beside an MRXS, VMS, VMU or DICOM file that hold its pixels; none if one cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".mrxs":
            return sorted(path.with_suffix("").iterdir())
        if suffix == ".dcm" and path.is_file():
            return series_files(path)
        if suffix in _INDEXES and path.is_file():  # a pipe would be waited for
            with path.open(encoding="latin-1") as file:
                lines = file.read(_MAX_INDEX_CHARS).splitlines()
            beside = {path.parent / line.partition("=")[2].strip() for line in lines}
            return sorted(part for part in beside if part.is_file())
    except (OSError, ValueError):
        pass  # what reads the slide says what is wrong with it
    return []


def _identity(path: Path) -> _Identity | None:
    """What tells a file from another; None if there is none that could be looked at."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


__all__ = ["unchanged"]
