"""Features of slides: from the cache, from who is at it already, or computed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from cmamil_sdk.errors import CmamilError, InputError
from cmamil_sdk.features.extracted import ExtractedSlide
from cmamil_sdk.tiling.plan import check_tiles

from .admission import Ticket
from .config import ServerConfig
from .feature_cache import FeatureCache
from .feature_cache.key import feature_key, reading_key
from .hashing import SlideHasher
from .paths import SlideRef, open_slide_file
from .single_flight import SingleFlight
from .slide_request import SlideRequest, Stage
from .uploads.uploads import unowned

FeatureSource = Literal["computed", "cached", "coalesced"]

_HEAD_START_S = 0.02  # about 25 MB
_NOT_DONE = {"open": 0.0, "tissue": 0.0, "decode": 0.0, "encode": 0.0}


@dataclass(frozen=True)
class Features:
    """Features of a slide.

    Attributes:
        slide: the features, and what the plan said.
        seconds: per stage; 0 for those that were not done, because the features were in the cache.
        source: ``computed``, ``cached``, or ``coalesced``: another request was at it already.
    """

    slide: ExtractedSlide
    seconds: Mapping[str, float]
    source: FeatureSource = "computed"


Report = Callable[[Stage], None]
Compute = Callable[[SlideRef, SlideRequest, Ticket, Report], Coroutine[Any, Any, Features]]


class FeatureFinder:
    """Has each slide read and encoded once for all who ask for it, and keeps its features."""

    def __init__(
        self,
        config: ServerConfig,
        hasher: SlideHasher,
        cache: FeatureCache | None,
        compute: Compute,
    ) -> None:
        """``compute`` waits for the turn of a ticket, and then reads and encodes a slide."""
        self._reader, self._max_tiles = config.reader, config.max_tiles
        self._hasher, self._cache, self._compute = hasher, cache, compute
        self._flights = SingleFlight[Hashable, Features, Stage]()
        self._keeping: set[asyncio.Task[None]] = set()

    def key(self, ref: SlideRef, request: SlideRequest) -> Hashable:
        """Names the work for a request: those with equal keys at a time share it."""
        if request.bypass_cache:
            return object()
        reading = reading_key(request.model, request.mpp, self._reader)
        # Owners of an uploaded slide share the work, and each has its own name for it.
        # Of two models with one encoder, one may refuse a slide that the other takes, or be unloaded.
        return unowned(ref), reading, request.model.number, request.aggregate

    def may_be_soon(self, key: Hashable, request: SlideRequest) -> bool:
        """Whether the features may be there sooner than a slide can be read."""
        return key in self._flights or (self._cache is not None and not request.bypass_cache)

    async def find(
        self, key: Hashable, ref: SlideRef, request: SlideRequest, ticket: Ticket, report: Report
    ) -> Features:
        """The features of a slide; ``report`` hears of the work once it has begun.

        Raises:
            CmamilError: as the work does.
        """
        shared = unowned(ref)
        joined = key in self._flights
        if joined:
            ticket.release()  # the work has a place already
        else:
            ticket.keep()  # for those who may join and stay when this request is gone
        try:
            found = await self._flights.share(
                key,
                lambda tell: self._find(shared, request, ticket, tell),
                on_event=report,
                on_end=ticket.drop,
            )
        except CmamilError as problem:
            if shared == ref:
                raise
            raise type(problem)(str(problem).replace(shared.shown, ref.shown)) from problem
        if shared != ref:
            found = replace(found, slide=_named(found.slide, ref.shown, ref.slide_id))
        if joined and found.source == "computed":
            return replace(found, source="coalesced")
        return found

    def close(self) -> None:
        """Drop what is still to be kept."""
        for task in self._keeping:
            task.cancel()
        if self._cache is not None:
            self._cache.close()

    async def _find(
        self, ref: SlideRef, request: SlideRequest, ticket: Ticket, tell: Report
    ) -> Features:
        cache = self._cache
        if cache is None or request.bypass_cache:
            return await self._compute(ref, request, ticket, tell)
        reading = reading_key(request.model, request.mpp, self._reader)
        tasks = [looking := asyncio.create_task(self._look_up(cache, ref, reading))]
        try:
            # A large slide is read while it is hashed; a small one is hashed before reading begins.
            head_start_s = None if self._hasher.knows(ref) else _HEAD_START_S
            await asyncio.wait(tasks, timeout=head_start_s)
            if not looking.done() or looking.result() is None:
                tasks.append(asyncio.create_task(self._compute(ref, request, ticket, tell)))
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if looking.done() and (cached := looking.result()) is not None:
                return cached
            computed = await tasks[-1]
            assert computed is not None
            self._keep_later(cache, ref, reading, computed.slide, ticket)
            return computed
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_up(self, cache: FeatureCache, ref: SlideRef, reading: str) -> Features | None:
        slide = await cache.find(feature_key(await self._hasher.sha256(ref), reading))
        if slide is None:
            return None
        check_tiles(ref.shown, slide.total_planned, self._max_tiles)
        return Features(_named(slide, ref.shown, ref.slide_id), _NOT_DONE, "cached")

    def _keep_later(
        self,
        cache: FeatureCache,
        ref: SlideRef,
        reading: str,
        slide: ExtractedSlide,
        ticket: Ticket,
    ) -> None:
        """Keep features without letting anybody wait; until that is done its place stays taken."""
        ticket.keep()
        task = asyncio.create_task(self._keep(cache, ref, reading, slide))
        self._keeping.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._keeping.discard(finished)
            ticket.drop()

        task.add_done_callback(done)

    async def _keep(
        self, cache: FeatureCache, ref: SlideRef, reading: str, slide: ExtractedSlide
    ) -> None:
        try:
            digest = await self._hasher.sha256(ref)
            await asyncio.to_thread(_check_unchanged, ref)
        except InputError:
            return  # it changed or went since: these features are nobody's
        # Found by content, whatever its name; and names of slides may be those of patients.
        await cache.keep(feature_key(digest, reading), _named(slide, "", ""))


def _named(slide: ExtractedSlide, path: str, slide_id: str) -> ExtractedSlide:
    """The same under another name."""
    return replace(
        slide,
        facts=replace(slide.facts, path=path, slide_id=slide_id),
        bag=replace(slide.bag, slide_id=slide_id),
    )


def _check_unchanged(ref: SlideRef) -> None:
    """Raise if the slide is no longer what was read, at the latest as long as its hash took."""
    os.close(open_slide_file(ref))


__all__ = ["FeatureFinder", "FeatureSource", "Features", "Report"]
