"""The worker processes and the fair queue in front of them.

Each active slide is a :class:`Job` with its own queue of tasks; free workers take from the jobs in
turn, one task each, so a slide of a million tiles delays one of twenty by one task per worker. A
worker that dies is started again and its task is tried once more; a task that ends two workers is
blamed, and with it only its own slide.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, Self

from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.errors import (
    BundleUnsupported,
    CmamilError,
    DecoderCrashed,
    InternalError,
    ServerDraining,
    UnexpectedError,
    error_from_reason,
)
from cmamil_sdk.features.encode import EncodedBatch

from .child import WORKER_COMMAND, ChildProcess
from .logs import Event
from .messages import (
    AddModel,
    DropModel,
    Failed,
    Ready,
    Reply,
    RunGraph,
    Task,
    WorkerSetup,
    described,
)

LOG = logging.getLogger(__name__)

_CRASHES_TO_BLAME = 2
_START_TIMEOUT_S = 120.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 10.0


class WorkerState(Enum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


class _Item:
    """One task on its way; its result goes to ``results`` of its job exactly once."""

    def __init__(self, task: Task, results: asyncio.Queue[Reply | CmamilError]) -> None:
        self.task = task
        self.results = results
        self.crashes = 0


class Job:
    """The tasks of one request. Leaving the ``with`` block drops all that have not begun."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self.pending: deque[_Item] = deque()
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

    def _offer(self, tasks: Sequence[Task]) -> asyncio.Queue[Reply | CmamilError]:
        results: asyncio.Queue[Reply | CmamilError] = asyncio.Queue()
        self.pending.extend(_Item(task, results) for task in tasks)
        self._pool.offer(self)
        return results


class Slot:
    """A place for one worker, which outlives the processes that fill it."""

    def __init__(self, pool: WorkerPool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.state = WorkerState.STARTING
        self.restarts = 0
        self.tiles = 0
        self.child: ChildProcess | None = None
        self.current: tuple[Job, _Item] | None = None
        self.own = Job(pool)
        """Tasks for this worker alone, which come before those of requests."""
        self.models: set[int] = set()
        """Numbers of those that its process has, or will have when it is ready."""
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.failures = 0
        self._watchdog: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        self.state = WorkerState.STARTING
        self.child = ChildProcess(self._on_reply, self._on_exit)
        self.pool.children.add(self.child)
        await self.child.start(self.pool.command)
        self._watch(_START_TIMEOUT_S)
        self.models = {spec.number for spec in self.pool.setup.models}
        self.child.send(self.pool.setup)

    async def run(self, task: Task) -> Reply:
        """Have this worker do a task; waits until it is free, and through restarts before.

        Raises:
            CmamilError: as the worker raised it; :class:`BundleUnsupported` if the task killed it.
        """
        item = _Item(task, asyncio.Queue())
        self.own.pending.append(item)
        self.pool.dispatch()
        try:
            reply = await item.results.get()
        finally:
            if item in self.own.pending:  # nobody waits any more
                self.own.pending.remove(item)
        if isinstance(reply, CmamilError):
            raise reply
        return reply

    def assign(self, job: Job, item: _Item) -> None:
        assert self.child is not None
        self.current = (job, item)
        self.state = WorkerState.BUSY
        self._watch(self.pool.task_timeout_s)
        self.child.send(item.task)

    def _watch(self, seconds: float) -> None:
        self._unwatch()
        self._watchdog = asyncio.get_running_loop().call_later(seconds, self._on_hang, seconds)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _on_hang(self, seconds: float) -> None:
        LOG.error(Event("worker_hung", worker=self.number, silent_s=seconds))
        if self.child is not None:
            self.child.kill()

    def _on_reply(self, reply: Reply) -> None:
        self._unwatch()
        if self.current is None:
            self._on_first(reply)
            return
        job, item = self.current
        self.current = None
        self.state = WorkerState.IDLE
        if isinstance(reply, EncodedBatch):
            self.tiles += len(reply.batch)
            self.pool.on_batch(reply)
        if not job.closed:
            item.results.put_nowait(_outcome(reply))
        self.pool.dispatch()

    def _on_first(self, reply: Reply) -> None:
        if isinstance(reply, Ready):
            self.failures = 0
            self.state = WorkerState.IDLE
            self.pool.engines.update(reply.engines)
            LOG.info(Event("worker_ready", worker=self.number, restarts=self.restarts))
            if not self.ready.done():
                self.ready.set_result(reply)
            self.pool.changed()
            self.pool.dispatch()
        elif not self.ready.done():
            problem = _outcome(reply)
            assert isinstance(problem, CmamilError)
            self.ready.set_exception(problem)

    def _on_exit(self) -> None:
        self._unwatch()
        was_starting, self.state = self.state is WorkerState.STARTING, WorkerState.STARTING
        current, self.current = self.current, None
        self.models = set()
        if self.pool.stopping:
            if current:
                current[1].results.put_nowait(_stopped())
            return
        if self.child is not None:
            self.pool.spawn(self.pool.reap(self.child, self.number))
        if current:
            self._retry(*current)
        self.failures = self.failures + 1 if was_starting else 0
        if was_starting and not self.ready.done():
            self.ready.set_exception(
                UnexpectedError("A worker process died while it started; see standard error.")
            )
            return
        self.restarts += 1
        self.pool.changed()
        self.pool.spawn(self._restart())

    async def _restart(self) -> None:
        """Start again: at once after a crash, later and later after failures to start."""
        while True:
            if self.failures:
                await asyncio.sleep(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**self.failures))
            try:
                await self.start()
                return
            except OSError as problem:
                LOG.error(Event("worker_not_started", worker=self.number, problem=str(problem)))
                self.failures += 1

    def _retry(self, job: Job, item: _Item) -> None:
        item.crashes += 1
        if job.closed:
            return
        if item.crashes >= _CRASHES_TO_BLAME or job is self.own:
            item.results.put_nowait(_blamed(item.task))
            return
        job.pending.appendleft(item)
        self.pool.offer(job, first=True)


class WorkerPool:
    """A fixed number of workers behind a fair queue; use it from one event loop only."""

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        workers: int,
        task_timeout_s: float,
        command: Sequence[str] = WORKER_COMMAND,
        on_change: Callable[[], None] = lambda: None,
        on_batch: Callable[[EncodedBatch], None] = lambda _batch: None,
    ) -> None:
        """``on_change`` is called when a worker becomes ready or dies, ``on_batch`` for each batch."""
        self.setup = setup
        self.task_timeout_s = task_timeout_s
        self.command = command
        self.changed = on_change
        self.on_batch = on_batch
        self.stopping = False
        self.engines: dict[int, EngineInfo] = {}
        """Of each model's encoder as the workers run it, by the number of the model."""
        self._rotation: deque[Job] = deque()
        self.children: set[ChildProcess] = set()
        self._background: set[asyncio.Task[None]] = set()
        self.slots = [Slot(self, number) for number in range(workers)]

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            CmamilError: a worker cannot load an encoder; none is left running.
        """
        try:
            for slot in self.slots:
                await slot.start()
            await asyncio.gather(*(slot.ready for slot in self.slots))
        except OSError as problem:
            await self.stop()
            raise UnexpectedError(f"A worker process cannot be started ({problem}).") from problem
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all workers; returns when their processes are gone."""
        self.stopping = True
        background = list(self._background)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        for job in (*self._rotation, *(slot.own for slot in self.slots)):
            while job.pending:
                job.pending.popleft().results.put_nowait(_stopped())
        for child in self.children:
            child.kill()
        await asyncio.gather(*(child.ended() for child in self.children))
        for slot in self.slots:
            if slot.ready.done() and not slot.ready.cancelled():
                slot.ready.exception()  # seen, so that asyncio does not report it

    def job(self) -> Job:
        """A new queue of tasks, served in turn with the others."""
        return Job(self)

    @property
    def tiles(self) -> int:
        """Tiles read and encoded since the start."""
        return sum(slot.tiles for slot in self.slots)

    @property
    def restarts(self) -> int:
        """Workers that died and were started again, since the start."""
        return sum(slot.restarts for slot in self.slots)

    @property
    def waiting(self) -> int:
        """Tasks that wait for a worker."""
        return sum(len(job.pending) for job in self._rotation)

    @property
    def ready_workers(self) -> int:
        """Workers that can take or are doing a task."""
        return sum(slot.state is not WorkerState.STARTING for slot in self.slots)

    def offer(self, job: Job, *, first: bool = False) -> None:
        """Put a job with pending tasks into the rotation, at its end or as the next."""
        if first and job in self._rotation:
            self._rotation.remove(job)
        if first:
            self._rotation.appendleft(job)
        elif job not in self._rotation:
            self._rotation.append(job)
        self.dispatch()

    def dispatch(self) -> None:
        """Give free workers one task each, from the jobs in turn."""
        for slot in self.slots:
            if slot.state is not WorkerState.IDLE:
                continue
            if slot.own.pending:
                slot.assign(slot.own, slot.own.pending.popleft())
                continue
            while self._rotation and not self._rotation[0].pending:
                self._rotation.popleft()
            if not self._rotation:
                continue
            job = self._rotation.popleft()
            item = job.pending.popleft()
            if job.pending:
                self._rotation.append(job)
            slot.assign(job, item)

    async def reap(self, child: ChildProcess, number: int) -> None:
        """Wait for a dead process, so that none is left as a zombie, and say how it ended."""
        status = await child.ended()
        LOG.warning(Event("worker_died", worker=number, pid=child.pid, exit_status=status))
        self.children.discard(child)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background until it ends or the pool stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _outcome(reply: Reply) -> Reply | CmamilError:
    if not isinstance(reply, Failed):
        return reply
    if reply.details:
        LOG.error("a worker met an unexpected error:\n%s", reply.details)
    problem = error_from_reason(reply.reason, reply.message)
    if isinstance(problem, InternalError) and not reply.details:
        LOG.error("a worker reported %s", problem.reason)
    return problem


def _blamed(task: Task) -> CmamilError:
    if isinstance(task, AddModel | DropModel):
        return BundleUnsupported(
            f"{described(task)} ended a worker process; export it again, or choose another engine."
        )
    if isinstance(task, RunGraph):
        mend = "send fewer tensors, or other ones"
    else:
        mend = "copy the file again from its source, or convert it to a pyramidal tiled TIFF"
    return DecoderCrashed(f"{described(task)} ended two worker processes; {mend}.")


def _stopped() -> ServerDraining:
    return ServerDraining("The server stopped before the request was done; ask another, or later.")


__all__ = ["Job", "WorkerPool", "WorkerState"]
