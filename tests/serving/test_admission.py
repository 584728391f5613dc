"""Bounded, first come first served; deadlines end work."""

from __future__ import annotations

import asyncio

import pytest

from cmamil_sdk.errors import DeadlineExceeded, DeadlineTooShort, QueueFull, ServerDraining
from cmamil_sdk.serving.admission import Admission, Deadlines, Pace


def test_places_are_bounded_and_given_in_order() -> None:
    async def scenario() -> None:
        admission = Admission(max_active=1, max_queued=2)
        first, second, third = (admission.enter() for _ in range(3))
        assert [first.position, second.position, third.position] == [0, 0, 1]
        assert [t.turn.done() for t in (first, second, third)] == [True, False, False]
        with pytest.raises(QueueFull):
            admission.enter()
        assert 1.0 <= admission.retry_after_s() <= 60.0
        first.__exit__(None, None, None)
        assert second.turn.done() and not third.turn.done()
        admission.enter().__exit__(None, None, None)
        second.__exit__(None, None, None)
        third.__exit__(None, None, None)
        await asyncio.wait_for(admission.idle(), 1.0)
        assert admission.active == 0

    asyncio.run(scenario())


def test_what_is_few_by_itself_stands_in_the_line_though_it_is_full() -> None:
    async def scenario() -> None:
        admission = Admission(max_active=1, max_queued=1)
        holder, call = admission.enter(), admission.enter()
        with pytest.raises(QueueFull):
            admission.enter()
        job = admission.enter(bounded=False)
        assert job.position == 1
        holder.__exit__(None, None, None)
        late = admission.enter()  # the job takes no place of calls, nor do they overtake it
        assert late.position == 1
        call.__exit__(None, None, None)
        assert job.turn.done() and not late.turn.done()
        for ticket in (job, late):
            ticket.__exit__(None, None, None)

    asyncio.run(scenario())


def test_a_request_waits_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        admission = Admission(max_active=1, max_queued=1)
        holder = admission.enter()
        refused = pytest.raises(DeadlineExceeded, match=r"begin within its timeout of 0\.02 s")
        with admission.enter(timeout_s=0.02) as ticket, refused:
            await ticket.wait()
        assert not admission.waiting
        holder.__exit__(None, None, None)
        with admission.enter(timeout_s=0.0) as ticket:
            await ticket.wait()  # a place was free
        assert admission.active == 0

    asyncio.run(scenario())


def test_who_is_late_hears_that_it_begins_and_disturbs_nobody() -> None:
    async def scenario() -> None:
        heard: list[float] = []
        ticket = Admission(max_active=1, max_queued=1).enter(timeout_s=0.0)
        with pytest.raises(DeadlineExceeded):
            async with ticket.begins() as beginning:
                # After its time, before its task is told: the shared work tells all who wait.
                asyncio.get_running_loop().call_soon(lambda: heard.append(beginning.now()))
                await asyncio.sleep(5)
        assert heard

    asyncio.run(scenario())


def test_a_cancelled_waiter_leaves_its_place() -> None:
    async def scenario() -> None:
        admission = Admission(max_active=1, max_queued=1)
        holder = admission.enter()

        async def wait() -> None:
            with admission.enter() as ticket:
                await ticket.wait()

        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert len(admission.waiting) == 1
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert len(admission.waiting) == 0 and admission.active == 1
        holder.__exit__(None, None, None)
        assert admission.active == 0

    asyncio.run(scenario())


def test_a_draining_server_takes_nobody() -> None:
    async def scenario() -> None:
        admission = Admission(max_active=1, max_queued=1)
        admission.draining = True
        with pytest.raises(ServerDraining):
            admission.enter()

    asyncio.run(scenario())


@pytest.mark.parametrize("remaining_s", [0.01, None, 5.0])
def test_the_shortest_of_the_deadlines_holds(remaining_s: float | None) -> None:
    async def scenario() -> None:
        deadlines = Deadlines(default_s=0.02, longest_s=0.03)
        with pytest.raises(DeadlineExceeded):
            async with deadlines.limit(remaining_s):
                await asyncio.sleep(5)

    asyncio.run(scenario())


def test_stopping_ends_what_runs_and_what_comes_later() -> None:
    async def scenario() -> None:
        deadlines = Deadlines(default_s=10, longest_s=10)

        async def work() -> None:
            async with deadlines.limit(None):
                await asyncio.sleep(5)

        running = asyncio.create_task(work())
        await asyncio.sleep(0)
        deadlines.stop_all()
        for task in (running, asyncio.create_task(work())):
            with pytest.raises(ServerDraining):
                await asyncio.wait_for(task, 1.0)

    asyncio.run(scenario())


def test_only_what_cannot_be_done_is_refused_for_its_deadline() -> None:
    pace = Pace()
    for _ in range(7):
        pace.note(10.0)
        pace.check(0.001)  # too few to tell
    pace.note(4.0)
    pace.check(None)
    pace.check(2.0)  # half the time of the fastest
    with pytest.raises(DeadlineTooShort, match=r"has 1\.9 s and the fastest of the last 8 .* 4 s"):
        pace.check(1.9)
    for _ in range(32):
        pace.note(0.0)  # features that were known already
    pace.check(0.001)
