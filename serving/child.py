"""One worker process as the server's event loop sees it: a pipe with one task in flight at most."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from cmamil_sdk.child_pipe import child_environment

from .messages import HEADER, MAX_REPLY_BYTES, Parts, Reply, parse_reply
from .task_frames import task_frame

LOG = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-P", "-m", "cmamil_sdk.serving.worker")


class ChildProcess(asyncio.Protocol):
    """Starts a worker and frames what passes between it and the server.

    The callbacks run in the event loop: ``on_reply`` for each answer, ``on_exit`` once, when the
    process is gone or has to be taken for gone. Must be started from the thread of the event loop,
    because Linux ends a child together with the *thread* that started it.
    """

    def __init__(
        self, on_reply: Callable[[Reply | Parts], None], on_exit: Callable[[], None]
    ) -> None:
        self._on_reply, self._on_exit = on_reply, on_exit
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._sender: socket.socket | None = None
        self._sending: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.get_running_loop().create_future()

    async def start(self, command: Sequence[str]) -> None:
        """Start the process; OSError if that fails."""
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                # Ctrl-C in a terminal reaches the whole process group: the server decides alone.
                start_new_session=True,
            )
            # A transport would copy what it cannot send at once, and the loop would stand still.
            self._sender = ours.dup()
            self._sender.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            self.kill()
            if not self._ended.done():
                self._ended.set_result(None)
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process else None

    def send(self, message: object) -> None:
        """Send a message; lost without notice if the process has just died."""
        if self._sender is not None:
            self._sending = asyncio.create_task(self._send(task_frame(message), self._sending))

    def kill(self) -> None:
        """End the process at once; ``on_exit`` follows."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        self._end_sending()
        if self._transport is not None:
            self._transport.abort()

    async def ended(self) -> int | None:
        """Wait until the process is gone and reaped; its exit status, or less than 0 for a signal."""
        await asyncio.shield(self._ended)
        return None if self._process is None else await asyncio.to_thread(self._process.wait)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with any part of a frame, or several."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            size = HEADER.unpack_from(self._buffer)[0]
            if size > MAX_REPLY_BYTES:
                LOG.error("worker %s announced an answer of %d bytes", self.pid, size)
                self.kill()
                return
            end = HEADER.size + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            if not self._deliver(body):
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the worker has closed its end, which is when it died."""
        self.kill()
        if not self._ended.done():
            self._ended.set_result(None)
            self._on_exit()

    async def _send(
        self, parts: Sequence[bytes | memoryview], before: asyncio.Task[None] | None
    ) -> None:
        loop = asyncio.get_running_loop()
        if before is not None:
            await before
        try:
            for part in parts:
                if self._sender is None:
                    return
                await loop.sock_sendall(self._sender, part)
        except OSError:
            # The worker is gone: its end of the connection tells, and on_exit follows.
            return

    def _end_sending(self) -> None:
        sender, self._sender = self._sender, None
        if sender is None:
            return
        if self._sending is None or self._sending.done():
            sender.close()
        else:  # not before the loop has let go of it, or it might let go of another with its number
            self._sending.add_done_callback(lambda _: sender.close())
            self._sending.cancel()

    def _deliver(self, body: bytes) -> bool:
        try:
            reply = parse_reply(body)
        except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError) as problem:
            LOG.error("worker %s sent an answer that is refused: %s", self.pid, problem)
            self.kill()
            return False
        self._on_reply(reply)
        return True


def _environment() -> dict[str, str]:
    """This process's, with its module search path and one thread per library."""
    return {**child_environment(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


__all__ = ["WORKER_COMMAND", "ChildProcess"]
