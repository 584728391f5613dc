"""Who may work now, who waits, and who is sent away: bounded, first come first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from cmamil_sdk.errors import DeadlineExceeded, DeadlineTooShort, QueueFull, ServerDraining
from cmamil_sdk.wording import counted

_LONGEST_RETRY_S = 60.0
_MEMORY = 0.8  # weight of the past in the mean time of a slide
_REMEMBERED, _ENOUGH = 32, 8  # slides that tell how long one takes
_DOUBT = 0.5  # of the fastest of them: the next may be smaller


class Ticket:
    """The place of one request; leaving the ``with`` block gives it up."""

    def __init__(self, admission: Admission, timeout_s: float | None, bounded: bool) -> None:
        self._admission = admission
        self._timeout_s = timeout_s
        self.bounded = bounded
        self._entered_s = asyncio.get_running_loop().time()
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.started_s: float | None = None
        self._holders = 1
        self._released = False

    @property
    def position(self) -> int:
        """How many requests start before this one."""
        waiting = self._admission.waiting
        return waiting.index(self) if self in waiting else 0

    async def wait(self) -> None:
        """Wait for the request's turn.

        Raises:
            DeadlineExceeded: it did not come within the time that the request may wait.
        """
        async with self.begins():
            await self.turn

    @asynccontextmanager
    async def begins(self) -> AsyncIterator[Beginning]:
        """A block that notes when the request's work begins, alone or with another's.

        Raises:
            DeadlineExceeded: that was not within the time that the request may wait.
        """
        until_s = None if self._timeout_s is None else self._entered_s + self._timeout_s
        timer = asyncio.timeout_at(until_s)
        beginning = Beginning(timer)
        try:
            async with timer:
                yield beginning
        except TimeoutError as problem:
            if not timer.expired():
                raise
            raise DeadlineExceeded(
                f"The request did not begin within its timeout of {self._timeout_s:g} s; "
                "allow more time, or try again later."
            ) from problem
        finally:
            beginning.over()

    def __enter__(self) -> Self:
        """The ticket."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the place up, unless that is done, and let the next one start."""
        self.release()
        self._admission.gone()

    def release(self) -> None:
        """Give the place up before the block ends: what is left, the answer, needs no worker."""
        if not self._released:
            self._released = True
            self.drop()

    def keep(self) -> None:
        """Keep the place, whatever becomes of the request, until :meth:`drop` is called as often."""
        self._holders += 1

    def drop(self) -> None:
        """Give the place up where nobody else keeps it."""
        self._holders -= 1
        if not self._holders:
            self._admission.leave(self)


class Beginning:
    """When the work of a request began; seconds of :func:`time.perf_counter`, None until it did."""

    def __init__(self, timer: asyncio.Timeout) -> None:
        self._timer: asyncio.Timeout | None = timer
        self.at_s: float | None = None

    def now(self) -> float:
        """Note that it begins, unless it has; returns when that was."""
        if self.at_s is None:
            self.at_s = time.perf_counter()
            # Where it has expired the request ends, and not who shares its work.
            if self._timer is not None and not self._timer.expired():
                self._timer.reschedule(None)
        return self.at_s

    def over(self) -> None:
        """Let go of the timer: it holds the task, whose error holds the frames, which hold this."""
        self._timer = None


class Admission:
    """At most ``max_active`` requests at work and ``max_queued`` waiting."""

    def __init__(self, max_active: int, max_queued: int) -> None:
        self._max_active, self._max_queued = max_active, max_queued
        self.waiting: deque[Ticket] = deque()
        self.active = 0
        self.draining = False
        self.present = 0  # waiting, at work, or being answered
        self._mean_s = 1.0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, *, timeout_s: float | None = None, bounded: bool = True) -> Ticket:
        """A place at work or in the queue, where the request may wait for ``timeout_s``.

        ``bounded=False``: a place beyond ``max_queued``, for what is few by itself.

        Raises:
            ServerDraining: no new work is taken.
            QueueFull: no place is left.
        """
        if self.draining:
            raise ServerDraining("The server is shutting down; ask another, or later.")
        if bounded and self.active >= self._max_active and self._queued() >= self._max_queued:
            raise QueueFull(
                f"The server works on {counted(self.active, 'request')}, with {len(self.waiting)} "
                f"waiting; try again in {self.retry_after_s():.0f} s."
            )
        ticket = Ticket(self, timeout_s, bounded)
        self.waiting.append(ticket)
        self.present += 1
        self._idle.clear()
        self._advance()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Called once when a ticket's place is given up."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        elif ticket.started_s is not None:
            self.active -= 1
            took = time.monotonic() - ticket.started_s
            self._mean_s = _MEMORY * self._mean_s + (1 - _MEMORY) * took
        self._advance()
        self._settle()

    def gone(self) -> None:
        """Called once by the end of a ticket's block."""
        self.present -= 1
        self._settle()

    def retry_after_s(self) -> float:
        """About when a place in the queue becomes free, whole seconds from 1 to 60."""
        return min(_LONGEST_RETRY_S, max(1.0, round(self._mean_s / self._max_active)))

    async def idle(self) -> None:
        """Wait until nobody waits or is being answered, and no place is taken."""
        await self._idle.wait()

    def _queued(self) -> int:
        return sum(ticket.bounded for ticket in self.waiting)

    def _settle(self) -> None:
        if not self.present and not self.active:
            self._idle.set()

    def _advance(self) -> None:
        while self.waiting and self.active < self._max_active:
            ticket = self.waiting.popleft()
            self.active += 1
            ticket.started_s = time.monotonic()
            if not ticket.turn.done():
                ticket.turn.set_result(None)


class Pace:
    """How long slides take by one model, to refuse at once what cannot be done in time."""

    def __init__(self) -> None:
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, seconds: float) -> None:
        """Note the time of a slide that was predicted: its own work, without waiting for others."""
        self._took_s.append(seconds)

    def check(self, remaining_s: float | None) -> None:
        """Refuse a request that has so long; None, or too few slides to tell: no refusal.

        Raises:
            DeadlineTooShort: it has less than half the time of the fastest of the last 32 slides.
        """
        if remaining_s is None or len(self._took_s) < _ENOUGH:
            return
        fastest_s = min(self._took_s)
        if remaining_s < _DOUBT * fastest_s:
            raise DeadlineTooShort(
                f"The request has {max(0.0, remaining_s):.2g} s and the fastest of the last "
                f"{len(self._took_s)} slides took {fastest_s:.2g} s by this model; allow more time."
            )


class Deadlines:
    """Ends work at its deadline, or all of it at once when the server has to go."""

    def __init__(self, default_s: float, longest_s: float) -> None:
        self._default_s, self._longest_s = default_s, longest_s
        self._running: set[asyncio.Timeout] = set()
        self._stopped = False

    @asynccontextmanager
    async def limit(self, remaining_s: float | None) -> AsyncIterator[None]:
        """Cancel the block after ``remaining_s`` (None: the default), or the longest allowed time.

        Raises:
            DeadlineExceeded: the time is over.
            ServerDraining: :meth:`stop_all` was called.
        """
        seconds = min(self._default_s if remaining_s is None else remaining_s, self._longest_s)
        timer = asyncio.timeout(0.0 if self._stopped else seconds)
        self._running.add(timer)
        try:
            async with timer:
                yield
        except TimeoutError as problem:
            if not timer.expired():
                raise
            if self._stopped:
                raise ServerDraining(
                    "The server stopped before the request was done; ask another, or later."
                ) from problem
            raise DeadlineExceeded(
                f"The request was not done within {seconds:.1f} s; allow more time."
            ) from problem
        finally:
            self._running.discard(timer)

    def stop_all(self) -> None:
        """End all running work now."""
        self._stopped = True
        for timer in self._running:
            if not timer.expired():
                timer.reschedule(asyncio.get_running_loop().time())


__all__ = ["Admission", "Beginning", "Deadlines", "Pace", "Ticket"]
