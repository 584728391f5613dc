"""The path of a slide through the server: admitted, planned, encoded by workers, aggregated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cmamil_sdk.bundle import Aggregated
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
from .feature_cache import FeatureCache
from .features import FeatureFinder, Features, Report
from .hashing import SlideHasher
from .messages import EncodeTiles, GraphOutputs, MakePlan, Planned, ReadFacts, RunGraph
from .models import LoadedModel
from .paths import SlideRef, resolve
from .pool import WorkerPool
from .single_flight import SingleFlight
from .slide_request import SlideRequest, Stage
from .tokens import CALLER
from .uploads.uploads import Uploads

_T = TypeVar("_T")
Float32 = npt.NDArray[np.float32]
_UNTILEABLE = (MppUnknown, MppUnusable, NoTissue, SlideTooLarge, TooManyTiles)


@dataclass(frozen=True)
class Answer:
    """A prediction and the seconds its request waited for its turn."""

    prediction: Prediction
    seconds_queued: float


@dataclass(frozen=True)
class Extraction:
    """Features of a slide, its sha256, and the seconds its request waited and took after that."""

    features: Features
    slide_sha256: str
    seconds_queued: float
    seconds_total: float


@dataclass(frozen=True)
class Inspection:
    """What a slide is; ``plan`` is None, and ``problem`` says why, where it cannot be tiled."""

    facts: SlideFacts
    sha256: str
    plan: TilePlan | None
    problem: str


class Predictor:
    """Runs requests on the worker pool; the event loop only hands things on."""

    def __init__(
        self,
        config: ServerConfig,
        pool: WorkerPool,
        uploads: Uploads,
        cache: FeatureCache | None = None,
        on_plan: Callable[[TilePlan], None] = lambda _plan: None,
    ) -> None:
        """``cache``: where features are kept, None for nowhere.

        ``on_plan`` is called in a thread with the plan of each slide that is about to be read.
        """
        self._roots = config.slides_roots
        self._uploads = uploads
        self._reader = config.reader
        self._pool = pool
        self._on_plan = on_plan
        self._hasher = SlideHasher()
        self._features = FeatureFinder(config, self._hasher, cache, self._read_slide)
        self._aggregations = SingleFlight[Hashable, Aggregated, None]()
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
            DecoderCrashed: the slide ended two workers, now or a while ago.
            ModelNotFound: the model has been unloaded since it was found.
        """
        async with self._working(request.model, remaining_s):
            entered = time.perf_counter()
            ref, key, features, began = await self._find_features(
                request, ticket, report, remaining_s
            )
            slide, bundle = features.slide, request.model.bundle
            bundle.check_size(slide.planned, ref.shown)
            report(Stage("aggregating", slide.total_planned, slide.total_planned))
            aggregated = await self._aggregations.share(
                (key, ref),  # errors name the slide as its owner does
                lambda _tell: self.in_thread(bundle.aggregate, slide.bag),
            )
            work = {**features.seconds, "aggregate": aggregated.seconds}
            if features.source == "computed":
                request.model.pace.note(sum(work.values()))
            seconds = {**work, "total": time.perf_counter() - began}
            prediction = await self.in_thread(
                lambda: build_prediction(
                    slide, aggregated, bundle, seconds=seconds, top_k=request.top_k
                )
            )
            marked = replace(prediction, feature_source=features.source)
            return Answer(marked, began - entered)

    async def extract(
        self,
        request: SlideRequest,
        ticket: Ticket,
        *,
        remaining_s: float | None,
        report: Callable[[Stage], None] = lambda _stage: None,
    ) -> Extraction:
        """The features of one slide; ``report`` and errors as :meth:`predict`."""
        async with self._working(request.model, remaining_s):
            entered = time.perf_counter()
            ref, _, features, began = await self._find_features(request, ticket, report)
            took_s = time.perf_counter() - began
            sha256 = await self._hasher.sha256(ref)
            return Extraction(features, sha256, began - entered, took_s)

    async def inspect(
        self, request: SlideRequest, ticket: Ticket, *, remaining_s: float | None
    ) -> Inspection:
        """Say what a slide is. Errors as :meth:`predict`, but not being tileable is an answer."""
        async with self._working(request.model, remaining_s), self._found(request) as ref:
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
        self._features.close()
        self._hasher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run ``work`` in a thread, so that the event loop goes on."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)

    @asynccontextmanager
    async def _found(self, request: SlideRequest) -> AsyncIterator[SlideRef]:
        """The slide of a request; an uploaded one stays until the block ends."""
        if request.slide_id:
            async with self._uploads.using(request.slide_id, CALLER.get().name) as ref:
                self._hasher.remember(ref, request.slide_id)
                await self._check(ref, request.expected_sha256)
                yield ref
        else:
            ref = await asyncio.to_thread(resolve, request.uri, self._roots)
            await self._check(ref, request.expected_sha256)
            yield ref

    @asynccontextmanager
    async def _working(self, model: LoadedModel, remaining_s: float | None) -> AsyncIterator[None]:
        """Work with a model, which stays loaded meanwhile, until the deadline."""
        with model.use():
            async with self.deadlines.limit(remaining_s):
                yield

    async def _check(self, ref: SlideRef, expected_sha256: str) -> None:
        """Refuse a slide that ended workers, and one that is not what was expected."""
        self._pool.quarantine.check(ref)
        if not expected_sha256:
            return
        found = await self._hasher.sha256(ref)
        if found != expected_sha256.lower():
            raise SlideHashMismatch(
                f"{ref.shown} has sha256 {found}, {expected_sha256} was expected; "
                "name the right file, or copy it again."
            )

    async def _find_features(
        self,
        request: SlideRequest,
        ticket: Ticket,
        report: Report,
        remaining_s: float | None = None,
    ) -> tuple[SlideRef, Hashable, Features, float]:
        """The slide, the name of the work, the features, and when the work on them began."""
        report(Stage("queued"))
        async with self._found(request) as ref, ticket.begins() as beginning:
            key = self._features.key(ref, request)
            if not self._features.may_be_soon(key, request):
                request.model.pace.check(remaining_s)

            def enter(stage: Stage) -> None:
                beginning.now()
                report(stage)

            features = await self._features.find(key, ref, request, ticket, enter)
            return ref, key, features, beginning.now()

    async def _read_slide(
        self, ref: SlideRef, request: SlideRequest, ticket: Ticket, report: Report
    ) -> Features:
        """Wait for the turn, then have the workers read and encode a slide."""
        await ticket.turn
        report(Stage("planning"))
        bundle, number = request.model.bundle, request.model.number
        with self._pool.job() as job:
            planned = await job.run(MakePlan(ref, request.mpp, number))
            assert isinstance(planned, Planned)
            plan = planned.plan
            if request.aggregate:
                bundle.check_size(plan.counts(), plan.facts.path)
            await self.in_thread(self._on_plan, plan)
            device = decoding_device(self._reader, bundle.encoder_info)
            batches = await self.in_thread(plan.batches, batch_tiles(device))
            builder = BagBuilder(plan, bundle.manifest.encoder.dim)
            report(Stage("tiles", 0, plan.total_tiles()))
            tasks = (EncodeTiles(ref, request.mpp, number, batch) for batch in batches)
            async for encoded in job.run_all(tasks):
                assert isinstance(encoded, EncodedBatch)
                builder.add(encoded)
                report(Stage("tiles", builder.tiles_done, plan.total_tiles()))
        busy = min(len(self._pool.slots), len(batches))
        seconds = {
            "open": planned.seconds_open,
            "tissue": planned.seconds_tissue,
            "decode": builder.times.decode / busy,
            "encode": builder.times.encode / busy,
        }
        return Features(await self.in_thread(builder.extracted), seconds)


__all__ = ["Answer", "Extraction", "Inspection", "Predictor", "SlideRequest", "Stage"]
