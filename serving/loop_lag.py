"""How late the event loop does what is due: whatever holds it up holds up every call and health check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_S = 0.02


class LoopLag:
    """Samples the lag of an event loop, 50 times a second, from :meth:`start` to :meth:`stop`.

    Moments that pass while the loop is held up are samples, too: a call that came then had to wait.
    """

    def __init__(self, observe: Callable[[float], None]) -> None:
        """``observe`` is called with each sample, in seconds."""
        self._observe = observe
        self._due_s = 0.0
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + EVERY_S
        self._next = loop.call_at(self._due_s, self._look, loop)

    def stop(self) -> None:
        """End; may be called before :meth:`start`."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        while self._due_s <= now_s:
            self._observe(now_s - self._due_s)
            self._due_s += EVERY_S
        self._next = loop.call_at(self._due_s, self._look, loop)


__all__ = ["EVERY_S", "LoopLag"]
