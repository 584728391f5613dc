"""The jobs of a server from its start to its end: store, runner and followers as one."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from cmamil_sdk.errors import JobsUnavailable, ServerDraining, UnexpectedError

from ..admission import Admission
from ..calls import Call
from ..logs import Event
from ..predictor import Stage
from ..status import status_of
from .board import Board, Report
from .runner import OnEnd, Runner, Work, call_of
from .store import MAX_STARTS, JobRow, JobState, JobStore
from .thread import StoreThread

LOG = logging.getLogger(__name__)

_LONGEST_SWEEP_S = 60.0
_BLAME = (
    f"The server was killed {MAX_STARTS} times while it worked on this job, which it does not try again; "
    "its log and the system's may say why."
)


class JobKeeper:
    """Keeps jobs in the file ``path``; for one event loop.

    Errors of every coroutine: as the method of :class:`JobStore` that it is named after.
    """

    def __init__(
        self,
        path: Path,
        work: Work,
        *,
        on_end: OnEnd,
        max_active: int,
        max_waiting: int,
        keep_s: float,
    ) -> None:
        self._store = JobStore(path, max_waiting=max_waiting, keep_s=keep_s)
        self._thread = StoreThread()
        self._board = Board()
        self._on_end = on_end
        self._runner = Runner(
            self._thread, self._store, self._board, work, on_end=on_end, max_active=max_active
        )
        self._sweep_s = min(_LONGEST_SWEEP_S, keep_s)
        self._sweeper: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def counts(self) -> dict[JobState, int]:
        """How many jobs wait and run."""
        return self._store.counts

    async def open(self) -> None:
        """Open the file; from now on jobs can be looked at.

        Raises:
            ConfigInvalid: as :meth:`JobStore.open`.
        """
        blame = status_of(UnexpectedError(_BLAME)).trailers[0][1]
        try:
            again = await self._thread.do(self._store.open, blame)
        except BaseException:
            self._thread.close()
            raise
        self._sweeper = asyncio.create_task(self._sweep())
        LOG.info(Event("jobs", waiting=self.counts[JobState.PENDING], again=again))

    def begin(self, admission: Admission) -> None:
        """Begin to work on them."""
        self._runner.begin(admission)

    async def stop(self) -> None:
        """Stop working: what is at work waits for the next start, and followers are sent away."""
        self._stopped = True
        await self._runner.stop()
        self._board.close()
        try:
            put_back = await self._thread.do(self._store.put_back)
        except JobsUnavailable as problem:  # the next start puts them back as well
            LOG.error(Event("jobs_unavailable", problem=str(problem)))
        else:
            LOG.info(Event("jobs_put_back", jobs=put_back))

    async def close(self) -> None:
        """Let go of the file."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self._thread.do(self._store.close)
        self._thread.close()

    async def known(self, owner: str, request_id: str, fingerprint: str) -> JobRow | None:
        """The job that has this id, if there is one."""
        return await self._thread.do(self._store.known, owner, request_id, fingerprint)

    async def add(self, owner: str, request_id: str, fingerprint: str, request: bytes) -> JobRow:
        """A new job, or the one that has this id.

        Raises:
            ServerDraining: :meth:`stop` was called.
        """
        if self._stopped:
            raise ServerDraining("The server is shutting down; ask another, or later.")
        row = await self._thread.do(self._store.add, owner, request_id, fingerprint, request)
        self._runner.wake()
        return row

    async def get(self, job: str, owner: str | None, *, with_result: bool = False) -> JobRow:
        """A job."""
        return await self._thread.do(self._store.get, job, owner, with_result=with_result)

    async def page(
        self, owner: str | None, state: JobState | None, before: int | None, limit: int
    ) -> list[JobRow]:
        """Jobs, the newest first."""
        return await self._thread.do(self._store.page, owner, state, before, limit)

    async def cancel(self, job: str, owner: str | None) -> JobRow:
        """End a job."""
        row = await self._thread.do(self._store.cancel, job, owner)
        self._end_early(row)
        return row

    async def delete(self, job: str, owner: str | None) -> None:
        """Forget a job, whose work ends."""
        row = await self._thread.do(self._store.delete, job, owner)
        if not row.state.ended:
            self._end_early(row)

    def stage(self, job: str) -> Stage | None:
        """Where a job at work stands."""
        return self._board.stage(job)

    async def follow(self, job: str, report: Report) -> None:
        """Call ``report`` with each stage of a job until it has ended or is gone.

        Raises:
            ServerDraining: the server ends first.
        """
        with self._board.following(job, report) as ended:
            row = await self.get(job, None)  # it may have ended before it was followed
            if not row.state.ended:
                await ended

    def _end_early(self, row: JobRow) -> None:
        """Stop the work on a job that has ended in the store."""
        if self._runner.cancel(row.id):
            return  # which tells the rest
        call: Call = call_of(row)
        call.end("CANCELLED")
        self._on_end(call, JobState.CANCELLED)
        self._board.end(row.id)

    async def _sweep(self) -> None:
        """Forget jobs whose time is over, now and then."""
        while True:
            try:
                gone = await self._thread.do(self._store.expire)
            except JobsUnavailable as problem:
                LOG.error(Event("jobs_unavailable", problem=str(problem)))
            else:
                if gone:
                    LOG.info(Event("jobs_expired", jobs=gone))
            await asyncio.sleep(self._sweep_s)


__all__ = ["JobKeeper"]
