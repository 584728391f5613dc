"""Which file a request means: beneath the slides roots, or refused.

A path is walked from its root component by component, each opened relative to the one before and
without following links, so nothing outside a root is reached, nor learned about. The root itself may
be a symbolic link: who configures the server chooses it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cmamil_sdk.errors import (
    SlideCorrupt,
    SlideNotFound,
    SlideUnreadable,
    SlideUriForbidden,
)

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = (errno.ENOENT, errno.ENAMETOOLONG)
_SHOWN_CHARACTERS = 200

FileIdentity = tuple[int, int, int, int]
"""Device, inode, size and time of change, ns: the same by every name of a file, until it changes."""


@dataclass(frozen=True)
class SlideRef:
    """A regular file beneath a root, and enough to notice that it was replaced.

    Attributes:
        root: the slides root, as configured.
        parts: path components beneath it.
        device, inode, size, mtime_ns: of the file when it was found.
        label: a file name that messages and answers show in place of the path.
    """

    root: str
    parts: tuple[str, ...]
    device: int
    inode: int
    size: int
    mtime_ns: int
    label: str = ""

    @property
    def shown(self) -> str:
        """The label, or the path beneath the root: what messages may say."""
        return self.label or "/".join(self.parts)

    @property
    def name(self) -> str:
        """File name, as it is shown."""
        return self.label or self.parts[-1]

    @property
    def path(self) -> Path:
        """The whole path; following it does not check links again."""
        return Path(self.root, *self.parts)

    @property
    def slide_id(self) -> str:
        """File name without its last extension."""
        return Path(self.name).stem

    @property
    def identity(self) -> FileIdentity:
        """What tells the file, as it was found, from any other."""
        return self.device, self.inode, self.size, self.mtime_ns

    def check_unchanged(self, fd: int) -> None:
        """Look whether an open file is still what was found.

        Raises:
            SlideCorrupt: it is another file, or has another content.
        """
        if _identity(fd) != self.identity:
            raise SlideCorrupt(
                f"{self.shown} changed while it was being read; ask again when it is complete."
            )


def resolve(uri: str, roots: Sequence[Path]) -> SlideRef:
    """Find the slide that ``uri`` names: a ``file:`` URI, an absolute path, or one beneath a root.

    A relative path is looked up beneath each root in turn.

    Raises:
        SlideUriForbidden: another scheme, outside the roots, ``..``, NUL, a symbolic link beneath a
            root, or not a regular file.
        SlideNotFound: beneath a root, but not there.
        SlideUnreadable: the operating system refuses.
    """
    text = _path_of(uri)
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    if "\0" in text or ".." in parts:
        raise _forbidden(uri)
    candidates = beneath_roots(text.startswith("/"), parts, roots)
    if not candidates:
        raise _forbidden(uri)
    absent: SlideNotFound | None = None
    for root, beneath in candidates:
        try:
            found = open_beneath(root, beneath, uri)
        except SlideNotFound as problem:
            absent = absent or problem
            continue
        with _closing(found) as fd:
            return SlideRef(str(root), beneath, *_identity(fd))
    try:
        raise absent or _forbidden(uri)
    finally:
        del absent  # its frames hold this one


def open_slide_file(ref: SlideRef) -> int:
    """Open the file of ``ref`` again; returns a file descriptor that the caller closes.

    Raises:
        SlideCorrupt: it is no longer the same file with the same content.
        SlideUriForbidden, SlideNotFound, SlideUnreadable: as :func:`resolve`.
    """
    fd = open_beneath(Path(ref.root), ref.parts, ref.shown)
    try:
        ref.check_unchanged(fd)
    except SlideCorrupt:
        os.close(fd)
        raise
    return fd


def _identity(fd: int) -> FileIdentity:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def open_beneath(root: Path, parts: Sequence[str], shown: str) -> int:
    """Open a regular file beneath ``root`` for reading, following no link below the root."""
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise SlideUnreadable(
            f"A slides root of this server cannot be opened ({problem.strerror}); "
            "ask whoever runs it to mend that."
        ) from problem
    try:
        for part in parts[:-1]:
            deeper = _open_part(folder, part, _DIRECTORY, shown)
            os.close(folder)
            folder = deeper
        return _open_regular(folder, parts[-1], shown)
    finally:
        os.close(folder)


def _open_regular(folder: int, name: str, shown: str) -> int:
    # Opening a device can have effects, so its kind is looked at before.
    try:
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except (OSError, ValueError) as problem:
        raise _refusal(problem, folder, name, shown) from problem
    if not stat.S_ISREG(kind):
        raise _forbidden(shown)
    fd = _open_part(folder, name, _FILE, shown)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _forbidden(shown)
    return fd


def _open_part(folder: int, name: str, flags: int, shown: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except (OSError, ValueError) as problem:
        raise _refusal(problem, folder, name, shown) from problem


def _refusal(
    problem: OSError | ValueError, folder: int, name: str, shown: str
) -> SlideNotFound | SlideUriForbidden | SlideUnreadable:
    absent = SlideNotFound(f"There is no slide {_short(shown)} on this server; check the path.")
    if isinstance(problem, ValueError) or problem.errno in _ABSENT:
        return absent
    if problem.errno in (errno.ELOOP, errno.ENOTDIR):
        return _forbidden(shown) if _is_link(folder, name) else absent
    return SlideUnreadable(
        f"The server may not read {_short(shown)} ({problem.strerror}); change its permissions."
    )


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _path_of(uri: str) -> str:
    """The path in ``uri``, decoded if it is a ``file:`` URI."""
    if not _SCHEME.match(uri):
        return uri
    scheme, _, rest = uri.partition(":")
    if scheme.lower() != "file" or "?" in rest or "#" in rest:
        raise _forbidden(uri)
    if rest.startswith("//"):
        host, slash, tail = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _forbidden(uri)
        rest = slash + tail
    if not rest.startswith("/"):
        raise _forbidden(uri)
    return os.fsdecode(unquote_to_bytes(rest))


def beneath_roots(
    absolute: bool, parts: tuple[str, ...], roots: Sequence[Path]
) -> list[tuple[Path, tuple[str, ...]]]:
    """Each root with the components beneath it; an absolute path must begin with the root's."""
    if not parts:
        return []
    if not absolute:
        return [(root, parts) for root in roots]
    found = []
    for root in roots:
        for spelled in dict.fromkeys((root.absolute(), root.resolve())):
            prefix = spelled.parts[1:]
            if parts[: len(prefix)] == prefix and len(parts) > len(prefix):
                found.append((root, parts[len(prefix) :]))
                break
    return found


def _forbidden(shown: str) -> SlideUriForbidden:
    return SlideUriForbidden(
        f"The slide address {_short(shown)} is not allowed; name a regular file beneath one of the "
        "server's slides roots, without '..' and symbolic links."
    )


def _short(shown: str) -> str:
    if len(shown) <= _SHOWN_CHARACTERS:
        return repr(shown)
    return repr(shown[:_SHOWN_CHARACTERS] + "...")


class _closing:  # noqa: N801 - used as a function
    """Close a file descriptor at the end of a block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


__all__ = ["FileIdentity", "SlideRef", "beneath_roots", "open_slide_file", "resolve"]
