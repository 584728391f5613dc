"""What passes between a process and one that it started, and how it is framed.

A frame is a 4-byte little-endian length and a pickle. The child trusts its parent, but not the other way
round: a child parses hostile files, so its answers are unpickled with a list of the only classes that may
appear in them.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<I")

_NUMPY = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


@dataclass(frozen=True)
class Failed:
    """An error leaf's reason and message; ``details`` is a traceback for the log, or empty."""

    reason: str
    message: str
    details: str = ""


class ProcessDied(Exception):
    """The process is gone; says how it ended."""


class KnownClasses:
    """The classes that a child may send, beside numpy's arrays and Python's own values."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {(cls.__module__, cls.__qualname__): cls for cls in classes}

    def unpickled(self, body: bytes) -> Any:
        """A child's message.

        Raises:
            pickle.UnpicklingError: it holds anything else.
        """
        return _Unpickler(body, self._classes).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes, classes: dict[tuple[str, str], type]) -> None:
        super().__init__(io.BytesIO(body))
        self._classes = classes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._classes:
            return self._classes[module, name]
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a child process sent {module}.{name}")


def frame(message: object) -> bytes:
    """A message with its length in front."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


def receive(pipe: socket.socket) -> Any:
    """The parent's next message, or None once it has closed the socket. For children only."""
    body = receive_bytes(pipe)
    return None if body is None else pickle.loads(body)


def receive_bytes(pipe: socket.socket, most: int | None = None) -> bytes | None:
    """The next message as it was sent, or None once the other end is closed.

    Raises:
        ValueError: more than ``most`` bytes are announced.
    """
    head = _read(pipe, HEADER.size)
    if head is None:
        return None
    (size,) = HEADER.unpack(head)
    if most is not None and size > most:
        raise ValueError(f"a message of {size} bytes was announced")
    return _read(pipe, size)


def _read(pipe: socket.socket, size: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < size:
        chunk = pipe.recv(min(size - len(chunks), 2**20))
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


def child_environment() -> dict[str, str]:
    """This process's, with its module search path."""
    folders = (str(Path(path).resolve()) for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def how_it_ended(status: int) -> str:
    """Of a process with such an exit status; a signal's is below 0."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


__all__ = [
    "HEADER",
    "Failed",
    "KnownClasses",
    "ProcessDied",
    "child_environment",
    "frame",
    "how_it_ended",
    "receive",
    "receive_bytes",
]
