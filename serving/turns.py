"""Whose turn it is: jobs take turns, and small batches of several share one.

A worker that is free gets the first task of the job whose turn it is. If that is a batch of tiles that
leaves room in the calls of the encoder, the batches that are next in the other jobs, in turn, are put
beside it as long as they fit. So a slide of a million tiles delays one of twenty by one batch per worker,
and twenty slides of one tile each are encoded together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable
from types import TracebackType
from typing import Self

from cmamil_sdk.errors import CmamilError
from cmamil_sdk.features.encode import CPU_CALL_TILES

from .messages import EncodeTiles, Reply, Task

SHARED_TILES = 2 * CPU_CALL_TILES
"""Most tiles of batches that are encoded together: two calls of the encoder, both full."""


class Item:
    """One task on its way; its result goes to ``results`` exactly once, unless its job is closed.

    Attributes:
        crashes: workers that died over it while they had nothing else.
        alone: whether it has to be done by itself, because a worker died over it and others.
    """

    def __init__(self, task: Task, job: Job, results: asyncio.Queue[Reply | CmamilError]) -> None:
        self.task = task
        self.job = job
        self.crashes = 0
        self.alone = False
        self._results = results

    def answer(self, reply: Reply | CmamilError) -> None:
        """Hand the result to whoever waits for it; nobody waits on a closed job."""
        if not self.job.closed:
            self._results.put_nowait(reply)


class Job:
    """The tasks of one request. Leaving the ``with`` block drops all that have not begun."""

    def __init__(self, offer: Callable[[Job], None]) -> None:
        """``offer`` is called when the job has got new tasks."""
        self._offer_job = offer
        self.pending: deque[Item] = deque()
        self.closed = False

    def __enter__(self) -> Self:
        """The job."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drop what is pending; answers to what is running are thrown away."""
        self.closed = True
        self.pending.clear()

    async def run(self, task: Task) -> Reply:
        """Do one task.

        Raises:
            CmamilError: as the worker raised it; :class:`DecoderCrashed` if it killed two workers.
        """
        reply = await self._offer([task]).get()
        if isinstance(reply, CmamilError):
            raise reply
        return reply

    async def run_all(self, tasks: Iterable[Task]) -> AsyncIterator[Reply]:
        """Do tasks in any order; answers come as they are ready. Errors as :meth:`run`."""
        batch = list(tasks)
        results = self._offer(batch)
        for _ in batch:
            reply = await results.get()
            if isinstance(reply, CmamilError):
                raise reply
            yield reply

    def _offer(self, tasks: Iterable[Task]) -> asyncio.Queue[Reply | CmamilError]:
        results: asyncio.Queue[Reply | CmamilError] = asyncio.Queue()
        self.pending.extend(Item(task, self, results) for task in tasks)
        self._offer_job(self)
        return results


class Turns:
    """Jobs with pending tasks, in the order in which they are served."""

    def __init__(self, encoder_of: Callable[[EncodeTiles], Hashable | None]) -> None:
        """``encoder_of`` names the encoder whose calls a batch may share with others; None: with none."""
        self._encoder_of = encoder_of
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        """Tasks that wait."""
        return sum(len(job.pending) for job in self._jobs)

    def add(self, job: Job) -> None:
        """Put a job at the end, unless it is waiting already."""
        if job not in self._jobs:
            self._jobs.append(job)

    def put_back(self, item: Item) -> None:
        """Make a task the next one that is done."""
        item.job.pending.appendleft(item)
        if item.job in self._jobs:
            self._jobs.remove(item.job)
        self._jobs.appendleft(item.job)

    def take(self) -> list[Item]:
        """The task whose turn it is, and those that share its turn; empty if nothing waits."""
        while self._jobs and not self._jobs[0].pending:
            self._jobs.popleft()
        if not self._jobs:
            return []
        taken = [self._take_from(self._jobs[0])]
        encoder = self._shared_encoder(taken[0])
        if encoder is not None:
            room = SHARED_TILES - _tiles(taken[0])
            for job in [job for job in self._jobs if job is not taken[0].job and job.pending]:
                item = job.pending[0]
                if self._shared_encoder(item) == encoder and _tiles(item) <= room:
                    taken.append(self._take_from(job))
                    room -= _tiles(item)
        return taken

    def clear(self) -> list[Item]:
        """Take everything."""
        items = [item for job in self._jobs for item in job.pending]
        for job in self._jobs:
            job.pending.clear()
        self._jobs.clear()
        return items

    def _take_from(self, job: Job) -> Item:
        """A job's first task; the job goes to the end."""
        self._jobs.remove(job)
        item = job.pending.popleft()
        if job.pending:
            self._jobs.append(job)
        return item

    def _shared_encoder(self, item: Item) -> Hashable | None:
        if item.alone or not isinstance(item.task, EncodeTiles):
            return None
        return self._encoder_of(item.task)


def _tiles(item: Item) -> int:
    assert isinstance(item.task, EncodeTiles)
    return len(item.task.batch)


__all__ = ["SHARED_TILES", "Item", "Job", "Turns"]
