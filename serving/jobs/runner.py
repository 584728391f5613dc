"""Runs the jobs that wait, a few at a time, in the same line as the calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from cmamil_sdk.errors import (
    CmamilError,
    FieldInvalid,
    JobsUnavailable,
    ServerDraining,
    UnexpectedError,
)

from ..admission import Admission, Ticket
from ..calls import Call, act_for
from ..logs import Event
from ..predictor import Stage
from ..status import RequestInvalid, status_of
from ..tokens import CALLER, Caller
from .board import Board, Report
from .store import JobRow, JobState, JobStore
from .thread import StoreThread

LOG = logging.getLogger(__name__)

RETRY_S = 2.0
"""Pause while the jobs' file cannot be used."""

Work = Callable[[JobRow, Ticket, Report], Awaitable[bytes]]
OnEnd = Callable[[Call, JobState], None]
Ending = tuple[bytes | None, CmamilError | None]
"""The result or the error of a job."""


class Runner:
    """At most ``max_active`` jobs at a time.

    Each takes a place in the queue of calls, behind those that are there and before those that come
    later, whether or not the queue is full: neither can starve the other.
    """

    def __init__(
        self,
        thread: StoreThread,
        store: JobStore,
        board: Board,
        work: Work,
        *,
        on_end: OnEnd,
        max_active: int,
    ) -> None:
        """``work`` returns a job's result; ``on_end`` is shown each job that ended at work."""
        self._thread, self._store, self._board = thread, store, board
        self._work, self._on_end = work, on_end
        self._max_active = max_active
        self._more = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []
        self._tasks: dict[str, asyncio.Task[Ending]] = {}

    def begin(self, admission: Admission) -> None:
        """Start with the jobs that wait."""
        self._more.set()
        self._lanes = [asyncio.create_task(self._lane(admission)) for _ in range(self._max_active)]

    def wake(self) -> None:
        """Say that there is a job more."""
        self._more.set()

    def cancel(self, job: str) -> bool:
        """Stop working on a job that has ended in the store; False if it was not at work."""
        task = self._tasks.get(job)
        return task is not None and task.cancel()

    async def stop(self) -> None:
        """Stop working; what was at work still runs in the store."""
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    async def _lane(self, admission: Admission) -> None:
        while True:
            await self._more.wait()
            try:
                with admission.enter(bounded=False) as ticket:
                    await ticket.wait()
                    await self._next(ticket)
            except ServerDraining:
                return
            except JobsUnavailable as problem:
                self._more.set()
                await _pause(problem)
            except Exception:
                # A lane that ended unseen would leave the jobs waiting for ever.
                LOG.exception("the work on jobs met an unexpected error")
                self._more.set()
                await asyncio.sleep(RETRY_S)

    async def _next(self, ticket: Ticket) -> None:
        """Run the job whose turn it is, if there is one."""
        self._more.clear()
        row = await self._thread.do(self._store.claim)
        if row is None:
            return
        self._more.set()
        self._board.report(row.id, Stage("queued"))
        call = call_of(row)
        task = self._tasks[row.id] = asyncio.create_task(self._run(row, ticket, call))
        try:
            await asyncio.wait([task])
        finally:
            del self._tasks[row.id]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        ticket.release()
        if task.cancelled():
            call.end("CANCELLED")
            self._on_end(call, JobState.CANCELLED)
        else:
            await self._keep(row, call, *task.result())
        self._board.end(row.id)

    async def _run(self, row: JobRow, ticket: Ticket, call: Call) -> Ending:
        act_for(call)
        CALLER.set(Caller(row.owner, frozenset()))
        try:
            return await self._work(row, ticket, partial(self._board.report, row.id)), None
        except CmamilError as problem:
            return None, problem
        except RequestInvalid as problem:
            return None, FieldInvalid(f"The request is wrong: {problem}.")
        except Exception:
            LOG.exception("job %s met an unexpected error", row.id)
            return None, UnexpectedError(
                "The server met an unexpected error in this job; its log holds the details."
            )

    async def _keep(
        self, row: JobRow, call: Call, result: bytes | None, error: CmamilError | None
    ) -> None:
        """Write how a job ended, as soon as that can be done."""
        if isinstance(error, ServerDraining):
            return  # it is put back with all that are at work
        if error is None:
            state, status = JobState.SUCCEEDED, None
            call.end("OK")
        else:
            state, status = JobState.FAILED, status_of(error).trailers[0][1]
            call.end(error.grpc_status, error.reason)
        while True:
            try:
                kept = await self._thread.do(
                    self._store.finish, row.id, state, result=result, error=status
                )
            except JobsUnavailable as problem:
                await _pause(problem)
                continue
            if kept:
                self._on_end(call, state)
            return


def call_of(row: JobRow) -> Call:
    """A job as the log and the metrics see it."""
    return Call("PredictionJob", client=row.owner, request_id=row.request_id, job=f"jobs/{row.id}")


async def _pause(problem: JobsUnavailable) -> None:
    LOG.error(Event("jobs_unavailable", problem=str(problem)))
    await asyncio.sleep(RETRY_S)


__all__ = ["Runner", "call_of"]
