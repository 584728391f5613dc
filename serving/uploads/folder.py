"""The folder of uploaded slides; everything here may wait for the disk.

``<sha256>.slide`` is a whole slide, ``<sha256>.json`` its record, ``<random>.part`` what is still
arriving. A slide is there when both it and its record are: whatever else has such a name was left
behind by a server that was killed, and is removed when the next one opens the folder.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cmamil_sdk.errors import ConfigInvalid, OutputUnwritable, UploadsFull
from cmamil_sdk.files import replacing
from cmamil_sdk.locks import HeldLock, Locks, holder_of

from ..logs import Event

LOG = logging.getLogger(__name__)

_OURS = re.compile(
    r"(?P<id>[0-9a-f]{64})\.(slide|json)|[0-9a-f]{32}\.part|\.[0-9a-f]{64}\.json\.\d+\.tmp"
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UploadRecord(BaseModel):
    """What is known of an uploaded slide.

    Attributes:
        size_bytes: of the file.
        uploaded_s: when it was uploaded last, seconds since 1970.
        labels: the file name that each of its owners gave it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_bytes: int = Field(ge=1)
    uploaded_s: float
    labels: dict[str, str] = Field(min_length=1)


class Part:
    """The file of an upload on its way; it may be written by one thread and discarded by another."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{secrets.token_hex(16)}.part"
        self._fd: int | None = None
        self._over = False
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()

    def write(self, chunk: bytes) -> None:
        """Append; does nothing once it was discarded.

        Raises:
            UploadsFull: the disk is.
        """
        with self._lock, _storing():
            if self._over:
                return
            if self._fd is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
            left = memoryview(chunk)
            while left:
                left = left[os.write(self._fd, left) :]
            self._digest.update(chunk)

    def finish(self) -> str:
        """Put what was written on the disk; returns its sha256.

        Raises:
            UploadsFull: the disk is.
        """
        with self._lock, _storing():
            if self._fd is not None:
                os.fsync(self._fd)
            return self._digest.hexdigest()

    def move(self, path: Path) -> None:
        """Give the file its name."""
        with self._lock:
            self._path.rename(path)
            self._close()

    def discard(self) -> None:
        """Remove the file, unless it has moved."""
        with self._lock:
            if not self._over:
                self._path.unlink(missing_ok=True)
                self._close()

    def _close(self) -> None:
        self._over = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class UploadFolder:
    """One server's folder of uploads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: HeldLock | None = None

    def open(self) -> dict[str, UploadRecord]:
        """Make the folder where there is none, take it, and clear away what was left behind.

        Returns the records of the slides that are there, by id.

        Raises:
            ConfigInvalid: it cannot be used, or another server uses it.
        """
        lock = self.path / ".lock"
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            self._lock = Locks().take(lock)
            if self._lock is None:
                raise ConfigInvalid(
                    f"The folder of uploads {self.path} is in use by {holder_of(lock)}; give each "
                    "server its own."
                )
            return self._swept()
        except OSError as problem:
            raise ConfigInvalid(
                f"The folder of uploads {self.path} cannot be used ({problem.strerror}); change its "
                "permissions, or name another."
            ) from problem

    def close(self) -> None:
        """Let another server have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def free_bytes(self) -> int:
        """What the disk has room for."""
        return shutil.disk_usage(self.path).free

    def publish(self, part: Part, slide_id: str, record: UploadRecord) -> None:
        """Make a finished upload a slide.

        Raises:
            UploadsFull: the disk is; nothing is left.
        """
        try:
            # First the record: a slide without one would never be removed while the server lives.
            self.write(slide_id, record)
            part.move(self._slide(slide_id))
        except BaseException:
            self.forget(slide_id)
            raise

    def write(self, slide_id: str, record: UploadRecord) -> None:
        """Replace a record.

        Raises:
            UploadsFull: the disk is.
        """
        with _storing(), replacing(self._record(slide_id)) as temporary:
            temporary.touch(mode=0o600)  # file names may be those of patients
            temporary.write_bytes(record.model_dump_json().encode())

    def forget(self, slide_id: str) -> None:
        """Remove a record, so that the next server removes the slide if this one cannot."""
        self._record(slide_id).unlink(missing_ok=True)

    def remove(self, slide_id: str) -> None:
        """Remove a slide and its record."""
        self.forget(slide_id)
        self._slide(slide_id).unlink(missing_ok=True)

    def _swept(self) -> dict[str, UploadRecord]:
        found: dict[str, UploadRecord] = {}
        removed = 0
        paths = self.path.iterdir()
        names = [match for path in paths if (match := _OURS.fullmatch(path.name))]
        for slide_id in {match["id"] for match in names if match["id"]}:
            record = self._read(slide_id)
            if record is not None:
                found[slide_id] = record
        for match in names:
            if match["id"] not in found:
                (self.path / match.string).unlink()
                removed += 1
        if removed:
            LOG.warning(Event("uploads_swept", files=removed))
        return found

    def _read(self, slide_id: str) -> UploadRecord | None:
        """The record of a slide that is whole; None of any other."""
        try:
            record = UploadRecord.model_validate_json(self._record(slide_id).read_bytes())
            facts = self._slide(slide_id).lstat()
        except (FileNotFoundError, ValidationError):
            return None
        whole = stat.S_ISREG(facts.st_mode) and facts.st_size == record.size_bytes
        return record if whole else None

    def _slide(self, slide_id: str) -> Path:
        return self.path / slide_name(slide_id)

    def _record(self, slide_id: str) -> Path:
        return self.path / f"{slide_id}.json"


def slide_name(slide_id: str) -> str:
    """Name of a slide's file within the folder."""
    return f"{slide_id}.slide"


@contextmanager
def _storing() -> Iterator[None]:
    """A disk that is full becomes :class:`UploadsFull`; any other trouble stays what it is."""
    try:
        yield
    except (OSError, OutputUnwritable) as problem:
        cause = problem if isinstance(problem, OSError) else problem.__cause__
        if not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        raise UploadsFull(
            f"The server's disk has no room for the slide ({cause.strerror}); try again later, or ask "
            "who runs it for room."
        ) from problem


__all__ = ["Part", "UploadFolder", "UploadRecord", "slide_name"]
