"""Work that several requests ask for at once is done once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

_KeyT = TypeVar("_KeyT", bound=Hashable)
_ValueT = TypeVar("_ValueT")
_EventT = TypeVar("_EventT")


class SingleFlight(Generic[_KeyT, _ValueT, _EventT]):
    """Runs work in a task of its own for all who ask for it meanwhile; use it from one event loop.

    Whoever is cancelled leaves alone; with the last one the work is cancelled too.
    """

    def __init__(self) -> None:
        self._flights: dict[_KeyT, _Flight[_ValueT, _EventT]] = {}

    def __contains__(self, key: _KeyT) -> bool:
        """Whether work of that name is under way."""
        return key in self._flights

    async def share(
        self,
        key: _KeyT,
        work: Callable[[Callable[[_EventT], None]], Coroutine[Any, Any, _ValueT]],
        *,
        on_event: Callable[[_EventT], None] = lambda _event: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> _ValueT:
        """The value of the work named ``key``, or its error.

        Args:
            key: names the work: of two calls with one key at a time only the first one's is done.
            work: gets a function that tells an event to all who wait.
            on_event: called with the latest event there is, and with those to come.
            on_end: called when ``work`` has ended, or was cancelled before it began; only of the call
                whose work is done.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(work, on_end)
            flight.task.add_done_callback(lambda _: self._forget(key, flight))
        try:
            return await flight.value(on_event)
        finally:
            if not flight.listeners:
                # At once: who comes now must not wait for work that is being cancelled.
                self._forget(key, flight)
                flight.task.cancel()

    def _forget(self, key: _KeyT, flight: _Flight[_ValueT, _EventT]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


class _Flight(Generic[_ValueT, _EventT]):
    """One piece of work, and who waits for it."""

    def __init__(
        self,
        work: Callable[[Callable[[_EventT], None]], Coroutine[Any, Any, _ValueT]],
        on_end: Callable[[], None],
    ) -> None:
        self.listeners: list[Callable[[_EventT], None]] = []
        self._latest: list[_EventT] = []
        self.task = asyncio.get_running_loop().create_task(work(self._tell))
        self.task.add_done_callback(lambda _: on_end())

    async def value(self, on_event: Callable[[_EventT], None]) -> _ValueT:
        self.listeners.append(on_event)
        try:
            for event in self._latest:
                on_event(event)
            return await asyncio.shield(self.task)
        finally:
            self.listeners.remove(on_event)

    def _tell(self, event: _EventT) -> None:
        self._latest = [event]
        for listener in tuple(self.listeners):
            listener(event)


__all__ = ["SingleFlight"]
