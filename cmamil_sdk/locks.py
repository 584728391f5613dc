"""Lock files: one process at a time, among all that see a folder; the lock of a killed one is taken over.

The lock is the operating system's (flock), which ends with its process, however that ends. Where it does
not reach another machine, as on some network file systems, the file itself tells: its holder renews its
time, and one that stays the same for long enough was left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

RENEW_S = 15.0
"""A held lock's file gets a new time this often."""
STALE_S = 90.0
"""A lock of another machine whose time has not changed for so long was left behind."""

_GRACE_S = 0.2
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def this_process() -> str:
    """Number and machine of this process, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def holder_of(path: Path) -> str:
    """Who holds a lock, in words."""
    try:
        return path.read_text("utf-8").split("\n")[0] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


class HeldLock:
    """A lock of this process, until it is released.

    ``taken_over`` tells that another process had left it behind.
    """

    def __init__(self, path: Path, file: IO[str], *, taken_over: bool) -> None:
        """Sign ``file``, which is open at ``path`` and locked, and keep its time fresh."""
        self.taken_over = taken_over
        self._path, self._file = path, file
        self._signature = f"{this_process()}\n{_kernel()} {secrets.token_hex(8)}\n"
        self._released = threading.Event()
        file.seek(0)
        file.truncate()
        file.write(self._signature)
        file.flush()
        os.fsync(file.fileno())  # so that other machines see it
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._renewal.start()

    def release(self) -> None:
        """Let others have it; the file is removed."""
        self._released.set()
        self._renewal.join()
        if (
            _content(self._file) == self._signature
        ):  # else it was taken over while we were suspended
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            os.utime(self._file.fileno())

    def __enter__(self) -> Self:
        """The lock itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()


class Locks:
    """Takes locks, and remembers what it saw of those that other machines hold.

    Args:
        stale_s: how long the time of another machine's lock must not have changed under our eyes; 0
            takes it at once if flock allows.
        clock: seconds, monotonic.
    """

    def __init__(
        self, *, stale_s: float = STALE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stale_s, self._clock = stale_s, clock
        self._seen: dict[Path, tuple[str, int, float]] = {}

    def take(self, path: Path) -> HeldLock | None:
        """The lock at ``path``, or None while another process holds it; OSError if none can be made."""
        while True:
            file, made = _opened(path)
            try:
                with_kernel = _flock(file)
                if with_kernel is None:
                    file.close()
                    return None
                if not _is_at(path, file):
                    file.close()  # its holder has just removed it
                    continue
                if not made and self._held_elsewhere(path, file, with_kernel):
                    file.close()
                    return None
                self._seen.pop(path, None)
                return HeldLock(path, file, taken_over=not made)
            except BaseException:
                file.close()
                raise

    def wait(self, path: Path) -> HeldLock:
        """The lock at ``path``, as soon as nobody else holds it; for what is held briefly."""
        while (lock := self.take(path)) is None:
            time.sleep(0.02)
        return lock

    def _held_elsewhere(self, path: Path, file: IO[str], with_kernel: bool) -> bool:
        """Whether a lock that the kernel gave us may still be held where its word does not reach."""
        content = _content(file)
        if not content:  # its maker is about to sign it, or was killed before it could
            time.sleep(_GRACE_S)
            content = _content(file)
        if not content or (with_kernel and f"\n{_kernel()} " in content):
            return False
        now, mtime_ns = self._clock(), os.fstat(file.fileno()).st_mtime_ns
        seen = self._seen.get(path)
        if seen is None or seen[:2] != (content, mtime_ns):
            seen = self._seen[path] = (content, mtime_ns, now)
        return now - seen[2] < self._stale_s


def _opened(path: Path) -> tuple[IO[str], bool]:
    """The lock file, open, and whether it was not there before."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            pass
        else:
            with suppress(OSError):
                os.fchmod(fd, 0o666)  # whoever may write into the folder may take it over
            return os.fdopen(fd, "r+"), True
        try:
            return os.fdopen(os.open(path, os.O_RDWR), "r+"), False
        except FileNotFoundError:
            continue  # its holder has just removed it


def _flock(file: IO[str]) -> bool | None:
    """True if the kernel gave us the lock, None if another process has it, False if it knows none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as problem:
        if problem.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _kernel() -> str:
    """What tells one running kernel from all others: containers share it, and their locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()


__all__ = ["RENEW_S", "STALE_S", "HeldLock", "Locks", "holder_of", "this_process"]
