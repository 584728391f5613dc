"""The path of a slide through the server: admitted, planned, encoded by workers, aggregated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cmamil_sdk.errors import (
    MppUnknown,
    MppUnusable,
    NoTissue,
    SlideHashMismatch,
    SlideTooLarge,
    TooManyTiles,
)
from cmamil_sdk.features.encode import EncodedBatch, batch_tiles, decoding_device
from cmamil_sdk.features.extract import BagBuilder
from cmamil_sdk.predict import Prediction, build_prediction
from cmamil_sdk.slides import SlideFacts
from cmamil_sdk.tiling.plan import TilePlan

from .admission import Admission, Deadlines, Ticket
from .config import ServerConfig
from .hashing import SlideHasher
from .messages import EncodeTiles, GraphOutputs, MakePlan, Planned, ReadFacts, RunGraph
from .models import LoadedModel
from .paths import SlideRef, resolve
from .pool import Job, WorkerPool

_T = TypeVar("_T")
Float32 = npt.NDArray[np.float32]
_UNTILEABLE = (MppUnknown, MppUnusable, NoTissue, SlideTooLarge, TooManyTiles)


@dataclass(frozen=True)
class SlideRequest:
    """A checked request: which slide, by which model, read how."""

    uri: str
    expected_sha256: str
    mpp: float | None
    model: LoadedModel
    top_k: int = 0


@dataclass(frozen=True)
class Stage:
    """Where a request stands: ``queued``, ``planning``, ``tiles`` or ``aggregating``."""

    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Answer:
    """A prediction and the seconds its request waited for its turn."""

    prediction: Prediction
    seconds_queued: float


@dataclass(frozen=True)
class Inspection:
    """What a slide is; ``plan`` is None, and ``problem`` says why, where it cannot be tiled."""

    facts: SlideFacts
    sha256: str
    plan: TilePlan | None
    problem: str


class Predictor:
    """Runs requests on the worker pool; the event loop only hands things on."""

    def __init__(self, config: ServerConfig, pool: WorkerPool) -> None:
        self._roots = config.slides_roots
        self._reader = config.reader
        self._pool = pool
        self._hasher = SlideHasher()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="aggregate")
        self.admission = Admission(config.max_active_slides, config.max_queued)
        self.deadlines = Deadlines(config.default_deadline_s, config.max_deadline_s)

    async def predict(
        self,
        request: SlideRequest,
        ticket: Ticket,
        *,
        remaining_s: float | None,
        report: Callable[[Stage], None] = lambda _stage: None,
    ) -> Answer:
        """Predict one slide; ``report`` is called in the event loop.

        Raises:
            InputError: the slide cannot be used.
            DeadlineTooShort: ``remaining_s`` is less than it can take; it is not begun.
            DeadlineExceeded: not done in ``remaining_s`` (None: the server's default).
            ServerDraining: the server had to stop before.
            DecoderCrashed: the slide ended two workers.
            ModelNotFound: the model has been unloaded since it was found.
        """
        async with self._working(request.model, remaining_s):
            request.model.pace.check(remaining_s)
            entered = time.perf_counter()
            report(Stage("queued"))
            ref = await self._find(request)
            await ticket.wait()
            started = time.perf_counter()
            with self._pool.job() as job:
                prediction = await self._predict(job, ref, request, report, started)
            work = (s for stage, s in prediction.seconds.items() if stage != "total")
            request.model.pace.note(sum(work))
            return Answer(prediction, started - entered)

    async def inspect(
        self, request: SlideRequest, ticket: Ticket, *, remaining_s: float | None
    ) -> Inspection:
        """Say what a slide is. Errors as :meth:`predict`, but not being tileable is an answer."""
        async with self._working(request.model, remaining_s):
            ref = await self._find(request)
            await ticket.wait()
            sha256 = await self._hasher.sha256(ref)
            with self._pool.job() as job:
                facts = await job.run(ReadFacts(ref, request.mpp))
                assert isinstance(facts, SlideFacts)
                try:
                    planned = await job.run(MakePlan(ref, request.mpp, request.model.number))
                except _UNTILEABLE as problem:
                    return Inspection(facts, sha256, None, str(problem))
            assert isinstance(planned, Planned)
            return Inspection(facts, sha256, planned.plan, "")

    async def run_graph(
        self,
        model: LoadedModel,
        tasks: Sequence[RunGraph],
        ticket: Ticket,
        *,
        remaining_s: float | None,
    ) -> list[dict[str, Float32]]:
        """The outputs of a graph of ``model`` for each task of one request, in their order.

        Raises:
            FieldInvalid: the graph refuses its inputs.
            NonFiniteOutput: an output is NaN or infinite.
            DeadlineExceeded, ServerDraining, DecoderCrashed: as :meth:`predict`.
        """
        parts: dict[int, dict[str, Float32]] = {}
        async with self._working(model, remaining_s):
            await ticket.wait()
            with self._pool.job() as job:
                async for reply in job.run_all(tasks):
                    assert isinstance(reply, GraphOutputs)
                    parts[reply.part] = reply.outputs
        return [parts[task.part] for task in tasks]

    def close(self) -> None:
        """Drop what has not begun in the threads."""
        self._hasher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run ``work`` in a thread, so that the event loop goes on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    @asynccontextmanager
    async def _working(self, model: LoadedModel, remaining_s: float | None) -> AsyncIterator[None]:
        """Work with a model, which stays loaded meanwhile, until the deadline."""
        with model.use():
            async with self.deadlines.limit(remaining_s):
                yield

    async def _find(self, request: SlideRequest) -> SlideRef:
        ref = await asyncio.to_thread(resolve, request.uri, self._roots)
        if request.expected_sha256:
            found = await self._hasher.sha256(ref)
            if found != request.expected_sha256.lower():
                raise SlideHashMismatch(
                    f"{ref.shown} has sha256 {found}, {request.expected_sha256} was expected; "
                    "name the right file, or copy it again."
                )
        return ref

    async def _predict(
        self,
        job: Job,
        ref: SlideRef,
        request: SlideRequest,
        report: Callable[[Stage], None],
        started: float,
    ) -> Prediction:
        report(Stage("planning"))
        bundle, number = request.model.bundle, request.model.number
        planned = await job.run(MakePlan(ref, request.mpp, number))
        assert isinstance(planned, Planned)
        plan = planned.plan
        bundle.check_size(plan.counts(), plan.facts.path)
        device = decoding_device(self._reader, bundle.encoder_info)
        batches = await self.in_thread(plan.batches, batch_tiles(device))
        builder = BagBuilder(plan, bundle.manifest.encoder.dim)
        report(Stage("tiles", 0, plan.total_tiles()))
        tasks = (EncodeTiles(ref, request.mpp, number, batch) for batch in batches)
        async for encoded in job.run_all(tasks):
            assert isinstance(encoded, EncodedBatch)
            builder.add(encoded)
            report(Stage("tiles", builder.tiles_done, plan.total_tiles()))
        report(Stage("aggregating", builder.tiles_done, plan.total_tiles()))
        busy = min(len(self._pool.slots), len(batches))
        seconds = {
            "open": planned.seconds_open,
            "tissue": planned.seconds_tissue,
            "decode": builder.times.decode / busy,
            "encode": builder.times.encode / busy,
        }

        def finish() -> Prediction:
            bag = builder.finish()
            aggregated = bundle.aggregate(bag)
            seconds["aggregate"] = aggregated.seconds
            seconds["total"] = time.perf_counter() - started
            return build_prediction(
                plan,
                bag,
                aggregated,
                bundle,
                seconds=seconds,
                tiles_failed=builder.tiles_failed,
                top_k=request.top_k,
            )

        return await self.in_thread(finish)


__all__ = ["Answer", "Inspection", "Predictor", "SlideRequest", "Stage"]
