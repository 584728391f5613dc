"""The program that decodes with cuCIM, away from everything that must not crash with it.

Run by its path, so that it needs nothing but the standard library, numpy and cuCIM, with four open
descriptors: the socket to its parent, the slide, the memory that takes the pixels, and the file that
standard output and error go to. cuCIM reports a tile that it could not decode there and nowhere else, and
returns what lay in its buffer before; so whatever is written there while pixels are read makes them void.

Each message is a length (4 bytes, little-endian) and JSON. The first tells the parent what cuCIM sees in
the slide; then each request gets one answer, an empty one if the pixels are in the shared memory.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import select
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<I")
_BATCH = 8
_SHOWN_BYTES = 500


def main() -> None:
    """Serve the parent until it closes the socket or ends."""
    pipe_fd, slide_fd, memory_fd, log_fd = (int(number) for number in sys.argv[1:])
    import resource  # noqa: PLC0415 - the parent imports this module on systems that lack it

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = socket.socket(fileno=pipe_fd)
    threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
    try:
        with named(slide_fd) as name:
            image, seen = open_image(name)
    except ImportError as problem:
        send(pipe, {"missing": str(problem)})
        return
    except (RuntimeError, ValueError, OSError) as problem:
        send(pipe, {"problem": _one_line(str(problem)) or type(problem).__name__})
        return
    _take_log(log_fd)
    send(pipe, seen)
    server = _Server(image, memory_fd, log_fd)
    while (request := receive(pipe)) is not None:
        send(pipe, server.answer(request))


@contextmanager
def named(slide_fd: int) -> Iterator[str]:
    """A name for the file behind a descriptor by which cuCIM takes it for a TIFF; it goes when left."""
    with tempfile.TemporaryDirectory(prefix="cmamil-") as folder:
        link = Path(folder) / "slide.tif"
        link.symlink_to(f"/proc/self/fd/{slide_fd}")
        yield str(link)


def open_image(name: str) -> tuple[Any, dict[str, Any]]:
    """Open a file with cuCIM; returns the image, and what it sees in it.

    Decoding on a CPU needs the name no longer; on a GPU the file is opened again for each read.

    Raises:
        ImportError: cuCIM is not installed.
        RuntimeError, ValueError, OSError: it does not take the file.
    """
    from cucim.clara import CuImage  # noqa: PLC0415

    image = CuImage(name)
    found = image.resolutions
    levels = zip(found["level_dimensions"], found["level_downsamples"], strict=True)
    return image, {
        "version": str(import_module("cucim").__version__),
        "levels": [[*size, downsample] for size, downsample in levels],
    }


def read_batches(
    image: Any,
    level: int,
    corners: Sequence[Sequence[int]],
    size: Sequence[int],
    *,
    device: str = "cpu",
    as_array: Callable[[Any], Any] = np.asarray,
) -> Iterator[Any]:
    """Regions of one size, in order, as batches ``[n, height, width, 3]`` uint8.

    cuCIM reuses their memory: copy each before asking for the next.

    Args:
        image: of :func:`open_image`.
        level: number of the level.
        corners: top left corners in pixels of level 0, each within the level with its whole region.
        size: width and height in pixels of the level.
        device: where cuCIM decodes to, ``cpu`` or ``cuda``.
        as_array: makes a batch an array without copying it.
    """
    if len(corners) == 1 and device == "cpu":
        yield as_array(image.read_region(tuple(corners[0]), tuple(size), level))[None]
        return
    # A single region is decoded by the CPU whatever the device, to other pixels.
    asked = list(corners) * (2 if len(corners) == 1 else 1)
    flat = [int(number) for corner in asked for number in corner]
    batches = image.read_region(
        flat,
        tuple(size),
        level,
        num_workers=1,
        batch_size=min(_BATCH, len(asked)),
        device=device,
    )
    for batch in batches:
        yield as_array(batch)[: len(corners)]


def send(pipe: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    body = json.dumps(message).encode()
    pipe.sendall(_LENGTH.pack(len(body)) + body)


def receive(pipe: socket.socket) -> dict[str, Any] | None:
    """The next message, or None once the other end is closed."""
    head = _read(pipe, _LENGTH.size)
    body = None if head is None else _read(pipe, _LENGTH.unpack(head)[0])
    return None if body is None else json.loads(body)


def _read(pipe: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = pipe.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


class _Server:
    """Reads what is asked for into the shared memory, which the parent makes large enough."""

    def __init__(self, image: Any, memory_fd: int, log_fd: int) -> None:
        self._image, self._memory_fd, self._log_fd = image, memory_fd, log_fd
        self._memory: mmap.mmap | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._read(request["level"], request["corners"], request["size"])
        except MemoryError:
            return {"memory": True}
        except (RuntimeError, ValueError, OverflowError) as problem:
            _take_log(self._log_fd)
            return {"problem": _one_line(str(problem)) or type(problem).__name__}
        said = _take_log(self._log_fd)
        return {"problem": said} if said else {}

    def _read(self, level: int, corners: list[list[int]], size: list[int]) -> None:
        shape = (len(corners), size[1], size[0], 3)
        if self._memory is None or len(self._memory) < math.prod(shape):
            self._memory = mmap.mmap(self._memory_fd, math.prod(shape))
        pixels = np.frombuffer(self._memory, np.uint8, math.prod(shape)).reshape(shape)
        done = 0
        for batch in read_batches(self._image, level, corners, size):
            pixels[done : done + len(batch)] = batch
            done += len(batch)
        if done != len(corners):
            raise ValueError(f"{done} of {len(corners)} regions came")


def _take_log(log_fd: int) -> str:
    """What was written to standard output and error since the last time, as one line."""
    ctypes.CDLL(None).fflush(None)  # C's buffers, which Python does not know of
    said = os.pread(log_fd, _SHOWN_BYTES, 0)
    if said:
        os.ftruncate(log_fd, 0)
        os.lseek(log_fd, 0, os.SEEK_SET)
    return _one_line(said.decode(errors="replace"))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def end_with_parent(pipe: socket.socket) -> None:
    """End at once, even while decoding, when the other end is closed, as it is when the parent dies."""
    watch = select.poll()
    watch.register(pipe, select.POLLRDHUP)
    watch.poll()
    os._exit(0)


__all__ = ["end_with_parent", "named", "open_image", "read_batches", "receive", "send"]

if __name__ == "__main__":
    main()
