"""The worker processes behind the fair queue of :mod:`~cmamil_sdk.serving.turns`.

A worker that dies is started again. Tasks that it did together are tried again one by one, without
blame; one that it did alone is tried once more, and blamed if it ends a second worker: its slide fails,
and is not read again for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Sequence
from enum import Enum
from typing import Any

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
from cmamil_sdk.features.encode import EncodedBatch, decoding_device

from .child import WORKER_COMMAND, ChildProcess
from .logs import Event
from .messages import (
    AddModel,
    DropModel,
    EncodeTiles,
    EncodeTogether,
    Failed,
    Parts,
    Ready,
    Reply,
    RunGraph,
    SlideTask,
    Task,
    WorkerSetup,
    described,
)
from .quarantine import Quarantine
from .turns import Item, Job, Turns

LOG = logging.getLogger(__name__)

_CRASHES_TO_BLAME = 2
_START_TIMEOUT_S = 120.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 10.0


class WorkerState(Enum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


class Slot:
    """A place for one worker, which outlives the processes that fill it."""

    def __init__(self, pool: WorkerPool, number: int) -> None:
        self.pool = pool
        self.number = number
        self.state = WorkerState.STARTING
        self.restarts = 0
        self.tiles = 0
        self.child: ChildProcess | None = None
        self.current: list[Item] = []
        self.own = Job(lambda _job: pool.dispatch())
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
        results: asyncio.Queue[Reply | CmamilError] = asyncio.Queue()
        item = Item(task, self.own, results)
        self.own.pending.append(item)
        self.pool.dispatch()
        try:
            reply = await results.get()
        finally:
            if item in self.own.pending:  # nobody waits any more
                self.own.pending.remove(item)
        if isinstance(reply, CmamilError):
            raise reply
        return reply

    def take_own(self) -> list[Item]:
        """The next task for this worker alone, if there is one."""
        return [self.own.pending.popleft()] if self.own.pending else []

    def assign(self, items: list[Item]) -> None:
        assert self.child is not None
        self.current = items
        self.state = WorkerState.BUSY
        self._watch(self.pool.task_timeout_s)
        self.child.send(_message(items))

    def _watch(self, seconds: float) -> None:
        self._unwatch()
        self._watchdog = asyncio.get_running_loop().call_later(seconds, self._on_hang, seconds)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _on_hang(self, seconds: float) -> None:
        LOG.error(Event("worker_hung", worker=self.number, silent_s=seconds))
        self._kill()

    def _kill(self) -> None:
        if self.child is not None:
            self.child.kill()

    def _on_reply(self, reply: Reply | Parts) -> None:
        self._unwatch()
        if not self.current:
            self._on_first(reply)
            return
        replies = reply.replies if isinstance(reply, Parts) else (reply,)
        if len(replies) != len(self.current):
            LOG.error("worker %d sent %d answers that nobody asked for", self.number, len(replies))
            self._kill()
            return
        items, self.current = self.current, []
        self.state = WorkerState.IDLE
        encoded = [each for each in replies if isinstance(each, EncodedBatch)]
        if encoded:
            self.tiles += sum(len(each.batch) for each in encoded)
            self.pool.on_batch(encoded)
        for item, each in zip(items, replies, strict=True):
            item.answer(_outcome(each))
        self.pool.dispatch()

    def _on_first(self, reply: Reply | Parts) -> None:
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
            assert isinstance(reply, Failed)
            self.ready.set_exception(error_from_reason(reply.reason, reply.message))
        elif isinstance(reply, Failed):  # one that follows a worker that died; it is tried again
            LOG.error(Event("worker_not_started", worker=self.number, problem=reply.message))

    def _on_exit(self) -> None:
        self._unwatch()
        was_starting, self.state = self.state is WorkerState.STARTING, WorkerState.STARTING
        items, self.current = self.current, []
        self.models = set()
        if self.pool.stopping:
            for item in items:
                item.answer(_stopped())
            return
        if self.child is not None:
            self.pool.spawn(self.pool.reap(self.child, self.number))
        self.pool.retry(items)
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


class WorkerPool:
    """A fixed number of workers behind a fair queue; use it from one event loop only."""

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        workers: int,
        task_timeout_s: float,
        command: Sequence[str] = WORKER_COMMAND,
        quarantine_s: float = 0.0,
        on_change: Callable[[], None] = lambda: None,
        on_batch: Callable[[Sequence[EncodedBatch]], None] = lambda _parts: None,
    ) -> None:
        """``on_change`` is called when a worker becomes ready or dies, ``on_batch`` for each batch.

        A slide that ended two workers is refused for ``quarantine_s``.
        """
        self.setup = setup
        self.task_timeout_s = task_timeout_s
        self.command = command
        self.changed = on_change
        self.on_batch = on_batch
        self.stopping = False
        self.engines: dict[int, EngineInfo] = {}
        """Of each model's encoder as the workers run it, by the number of the model."""
        self.quarantine = Quarantine(quarantine_s)
        self._turns = Turns(self._shared_encoder)
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
        own = [item for slot in self.slots for item in slot.own.pending]
        for item in (*self._turns.clear(), *own):
            item.answer(_stopped())
        for child in self.children:
            child.kill()
        await asyncio.gather(*(child.ended() for child in self.children))
        for slot in self.slots:
            if slot.ready.done() and not slot.ready.cancelled():
                slot.ready.exception()  # seen, so that asyncio does not report it

    def job(self) -> Job:
        """A new queue of tasks, served in turn with the others."""
        return Job(self._offer)

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
        return len(self._turns)

    @property
    def ready_workers(self) -> int:
        """Workers that can take or are doing a task."""
        return sum(slot.state is not WorkerState.STARTING for slot in self.slots)

    def dispatch(self) -> None:
        """Give free workers what is next."""
        for slot in self.slots:
            while slot.state is WorkerState.IDLE and (
                items := slot.take_own() or self._turns.take()
            ):
                if allowed := [item for item in items if self._allows(item)]:
                    slot.assign(allowed)

    def retry(self, items: Sequence[Item]) -> None:
        """Do again, one by one, what a worker died over; blame what it did alone and did before."""
        for item in reversed(items):
            item.alone = True
            item.crashes += len(items) == 1
            if item.crashes >= _CRASHES_TO_BLAME or isinstance(item.task, AddModel | DropModel):
                item.answer(self._blame(item.task))
            elif not item.job.closed:
                self._turns.put_back(item)
        self.dispatch()

    def _offer(self, job: Job) -> None:
        self._turns.add(job)
        self.dispatch()

    def _allows(self, item: Item) -> bool:
        """Whether a task may be done; one of a slide in quarantine is refused."""
        task = item.task
        refusal = self.quarantine.refusal(task.slide) if isinstance(task, SlideTask) else None
        if refusal is not None:
            item.answer(refusal)
        return refusal is None

    def _blame(self, task: Task) -> CmamilError:
        if isinstance(task, AddModel | DropModel):
            return BundleUnsupported(
                f"{described(task)} ended a worker process; export it again, or choose another engine."
            )
        if isinstance(task, RunGraph):
            mend = "send fewer tensors, or other ones"
        else:
            self.quarantine.add(task.slide)
            mend = "copy the file again from its source, or convert it to a pyramidal tiled TIFF"
        return DecoderCrashed(f"{described(task)} ended two worker processes; {mend}.")

    def _shared_encoder(self, task: EncodeTiles) -> Hashable | None:
        """Batches that a GPU decodes are as large as its calls, and lie in its memory: each by itself."""
        for spec in self.setup.models:
            if spec.number == task.model:
                on_host = decoding_device(self.setup.reader, spec.encoder.engine) == "cpu"
                return spec.encoder.key if on_host else None
        return None

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


def _message(items: Sequence[Item]) -> Task | EncodeTogether:
    """What a worker is sent; only batches of tiles come together."""
    if len(items) == 1:
        return items[0].task
    return EncodeTogether(tuple(item.task for item in items if isinstance(item.task, EncodeTiles)))


def _stopped() -> ServerDraining:
    return ServerDraining("The server stopped before the request was done; ask another, or later.")


__all__ = ["WorkerPool", "WorkerState"]
