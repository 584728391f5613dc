"""How tasks travel to a worker: arrays beside the pickle that names them, so that none is copied.

A frame is the lengths of the pickle and of each array, then all of them. A worker trusts the server;
what comes back is framed and read by :mod:`cmamil_sdk.child_pipe`.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_HEADER = struct.Struct("<II")  # bytes of the pickle, number of arrays
_SIZE = struct.Struct("<Q")


def task_frame(message: object) -> list[bytes | memoryview]:
    """A message of the server, in parts to send one after the other; arrays are views, not copies."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(array.nbytes) for array in arrays)
    return [_HEADER.pack(len(body), len(arrays)) + sizes + body, *arrays]


def receive_task(pipe: socket.socket) -> Any:
    """The server's next message, or None once it has closed the socket. For workers only."""
    try:
        body_bytes, arrays = _HEADER.unpack(_read(pipe, _HEADER.size))
        sizes = [_SIZE.unpack(_read(pipe, _SIZE.size))[0] for _ in range(arrays)]
        body = _read(pipe, body_bytes)
        return pickle.loads(body, buffers=[_read(pipe, size) for size in sizes])
    except EOFError:
        return None


def _read(pipe: socket.socket, size: int) -> bytearray:
    """So many bytes; EOFError once the server has closed the socket."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        read = pipe.recv_into(left)
        if not read:
            raise EOFError
        left = left[read:]
    return data


__all__ = ["receive_task", "task_frame"]
