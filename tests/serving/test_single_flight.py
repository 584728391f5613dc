"""Work is done once for all who wait, and stops with the last of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cmamil_sdk.serving.single_flight import SingleFlight

Tell = Callable[[int], None]


class Work:
    """Counts its runs; ends when :attr:`gate` is set."""

    def __init__(self) -> None:
        self.runs = self.ended = self.cancelled = 0
        self.gate = asyncio.Event()

    async def __call__(self, tell: Tell) -> int:
        self.runs += 1
        tell(self.runs)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.runs

    def end(self) -> None:
        self.ended += 1


def run(test: Callable[[SingleFlight[str, int, int], Work], Coroutine[Any, Any, None]]) -> None:
    async def with_work() -> None:
        await asyncio.wait_for(test(SingleFlight(), Work()), 5)

    asyncio.run(with_work())


def test_members_leave_alone_and_the_rest_gets_the_value() -> None:
    async def check(flights: SingleFlight[str, int, int], work: Work) -> None:
        heard: list[int] = []
        waiting = [
            asyncio.create_task(flights.share("k", work, on_event=heard.append, on_end=work.end))
            for _ in range(4)
        ]
        await asyncio.sleep(0.01)
        assert "k" in flights
        waiting[0].cancel()  # the one whose work it is
        waiting[2].cancel()
        await asyncio.sleep(0.01)
        work.gate.set()
        assert [await waiting[1], await waiting[3]] == [1, 1]
        assert work.runs == work.ended == 1 and work.cancelled == 0
        assert heard == [1, 1, 1, 1]  # who joins later hears the latest
        assert "k" not in flights

    run(check)


def test_the_last_one_stops_the_work_and_nobody_joins_it_then() -> None:
    async def check(flights: SingleFlight[str, int, int], work: Work) -> None:
        first = asyncio.create_task(flights.share("k", work, on_end=work.end))
        second = asyncio.create_task(flights.share("k", work))
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        await asyncio.wait([first, second])
        third = asyncio.create_task(flights.share("k", work))
        await asyncio.sleep(0.01)
        assert work.cancelled == 1 and work.runs == 2 and work.ended == 1
        work.gate.set()
        assert await third == 2

    run(check)


def test_work_that_never_began_ends_too() -> None:
    async def check(flights: SingleFlight[str, int, int], work: Work) -> None:
        alone = asyncio.create_task(flights.share("k", work, on_end=work.end))
        await asyncio.sleep(0)  # the task of the work is made, and has not run
        alone.cancel()
        await asyncio.wait([alone])
        await asyncio.sleep(0.01)
        assert work.ended == 1 and "k" not in flights

    run(check)


def test_an_error_reaches_everybody() -> None:
    async def check(flights: SingleFlight[str, int, int], _work: Work) -> None:
        async def fail(_tell: Tell) -> int:
            await asyncio.sleep(0.01)
            raise ValueError("once")

        found = await asyncio.gather(
            *(flights.share("k", fail) for _ in range(3)), return_exceptions=True
        )
        assert [str(problem) for problem in found] == ["once"] * 3
        with pytest.raises(ValueError, match="once"):
            await flights.share("k", fail)

    run(check)
