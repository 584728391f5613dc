"""The events of work on a slide: accepted, progress now and then, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2

from .convert import progress_message
from .slide_request import Stage

_T = TypeVar("_T")

_SHORTEST_GAP_S = 0.5
_SMALLEST_STEP = 0.01


class CallContext(Protocol):
    """What the handlers use of :class:`grpc.aio.ServicerContext`."""

    def time_remaining(self) -> float | None:
        """Seconds to the client's deadline, None if it set none."""
        ...

    async def write(self, message: bytes) -> None:
        """Send one message of a stream; waits while the client does not take it."""
        ...

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str,
        trailing_metadata: tuple[tuple[str, bytes], ...],
    ) -> None:
        """End the call with a status; raises."""
        ...


class ProgressFilter:
    """Decides which stages are worth a message: at most 2 a second, and steps of at least 1 %.

    A silence of ``heartbeat_s`` ends with a message in any case, so that proxies keep the
    connection.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._sent: Stage | None = None
        self._sent_s = -_SHORTEST_GAP_S

    def delay(self, latest: Stage, now_s: float) -> float | None:
        """Seconds until ``latest`` may be sent; 0: now; None: not before something changes."""
        if self._is_step(latest):
            return max(0.0, self._sent_s + _SHORTEST_GAP_S - now_s)
        return None

    def heartbeat(self, now_s: float) -> float:
        """Seconds until a message has to be sent even if nothing changed."""
        return max(0.0, self._sent_s + self._heartbeat_s - now_s)

    def sent(self, stage: Stage, now_s: float) -> None:
        """Note that ``stage`` was sent."""
        self._sent, self._sent_s = stage, now_s

    def _is_step(self, latest: Stage) -> bool:
        if self._sent is None or latest.name != self._sent.name:
            return True
        return latest.done - self._sent.done >= max(1.0, _SMALLEST_STEP * latest.total)


class Events:
    """Numbers the messages of a stream, each of the type ``kind`` with one event."""

    def __init__(self, kind: Callable[..., Message], context: CallContext, request_id: str) -> None:
        self._kind, self._context, self._request_id = kind, context, request_id
        self._sequence = 0

    async def write(self, **event: Any) -> None:
        """Send an event under its name; waits while the client does not take it."""
        message = self._kind(request_id=self._request_id, sequence=self._sequence, **event)
        self._sequence += 1
        await self._context.write(message.SerializeToString())


async def with_progress(
    do: Callable[[Callable[[Stage], None]], Awaitable[_T]],
    events: Events,
    accepted: prediction_pb2.Accepted,
    *,
    heartbeat_s: float,
) -> _T:
    """What ``do`` returns, its progress written as events; errors are raised as it does."""

    async def write(stage: Stage) -> None:
        await events.write(progress=progress_message(stage))

    await events.write(accepted=accepted)
    return await stream_progress(do, write, heartbeat_s=heartbeat_s)


async def stream_progress(
    run: Callable[[Callable[[Stage], None]], Awaitable[_T]],
    write: Callable[[Stage], Awaitable[None]],
    *,
    heartbeat_s: float,
) -> _T:
    """What ``run`` returns or raises; meanwhile ``write`` the stages that it reports, as they are due.

    Only the latest progress is kept, so a slow client delays nothing and costs no memory. When the
    client is gone this coroutine is cancelled, and with it ``run``.
    """
    latest = Stage("queued")
    changed = asyncio.Event()

    def report(stage: Stage) -> None:
        nonlocal latest
        latest = stage
        changed.set()

    async def run_to_the_end() -> _T:
        try:
            return await run(report)
        finally:
            changed.set()

    work = asyncio.create_task(run_to_the_end())
    progress = ProgressFilter(heartbeat_s)
    try:
        while not work.done():
            now_s = time.monotonic()
            delay = progress.delay(latest, now_s)
            if delay == 0.0 or progress.heartbeat(now_s) == 0.0:
                stage = latest  # another may come while this one is written
                await write(stage)
                progress.sent(stage, time.monotonic())
                continue
            silence_s = progress.heartbeat(now_s)
            if delay is None:
                changed.clear()
                await _wait(changed, silence_s)
            else:
                await asyncio.wait([work], timeout=min(delay, silence_s))
        return await work
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        del work  # its error, if it has one, holds this frame


async def _wait(changed: asyncio.Event, seconds: float) -> None:
    """Wait for the event or the time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await changed.wait()


__all__ = ["CallContext", "Events", "ProgressFilter", "stream_progress", "with_progress"]
