"""From a plan to a bag: batches are read and encoded, rows fall into their places.

On CPUs a worker decodes a batch and then infers it itself: two stages in one thread keep every core
busy without a queue between them. Where a GPU decodes, one worker does both, one ahead of the other, in
a process of its own if the encoder is in one. The result does not depend on the number of workers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import Engine
from cmamil_sdk.errors import SlideCorrupt, UnexpectedError
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.encode import (
    EncodedBatch,
    call_tiles,
    decoding_device,
    encode_all,
    worker_count,
)
from cmamil_sdk.features.extracted import ExtractedSlide
from cmamil_sdk.features.isolated_encoder import IsolatedEncoder
from cmamil_sdk.slides.base import SlideFacts
from cmamil_sdk.slides.open import open_slide
from cmamil_sdk.tiling.batches import TileBatch
from cmamil_sdk.tiling.plan import TilePlan
from cmamil_sdk.wording import counted

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
BoolMask = npt.NDArray[np.bool_]

MAX_FAILED_SHARE = 0.05
"""A slide fails when a larger share of its tiles than this cannot be decoded."""

_ROWS_AT_ONCE = 4096


class Cancelled(Exception):
    """The caller's cancel flag was seen between two batches."""


@dataclass
class ExtractTimes:
    """Seconds spent decoding and encoding, summed over workers."""

    decode: float = 0.0
    encode: float = 0.0


class BagBuilder:
    """Collects encoded batches, in any order, into the bag of a plan.

    Attributes:
        workers: the number of threads, or processes, that make them.
        reader_reason: why the slide is read as it is; where a GPU decodes, as its reader says it.
    """

    def __init__(self, plan: TilePlan, dim: int) -> None:
        """Make room for every tile of ``plan`` with ``dim`` features."""
        self._plan = plan
        self._features = [np.zeros((len(s.index), dim), np.float32) for s in plan.scales]
        self._ok = [np.zeros(len(s.index), dtype=bool) for s in plan.scales]
        self.times = ExtractTimes()
        self.workers = 1
        self.reader_reason = plan.facts.reader_reason
        self.batches_done = 0
        self.tiles_done = 0
        self.tiles_failed = 0

    def add(self, encoded: EncodedBatch) -> None:
        """Put the features of one batch into their rows."""
        batch, ok = encoded.batch, encoded.ok
        for scale in np.unique(batch.tile_scale):
            chosen = (batch.tile_scale == scale) & ok
            self._features[scale][batch.plan_row[chosen]] = encoded.features[chosen]
            self._ok[scale][batch.plan_row[chosen]] = True
        self.batches_done += 1
        self.tiles_done += len(batch)
        self.tiles_failed += int((~ok).sum())
        self.times.decode += encoded.seconds_decode
        self.times.encode += encoded.seconds_encode

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of decoding and encoding, a worker's mean."""
        return {
            "decode": self.times.decode / self.workers,
            "encode": self.times.encode / self.workers,
        }

    def finish(self) -> Bag:
        """The bag, without the tiles that could not be decoded; it takes over this builder's arrays.

        Raises:
            SlideCorrupt: more than 5 % of the tiles failed, or all tiles of a scale.
            UnexpectedError: batches are missing.
        """
        total = self._plan.total_tiles()
        if self.tiles_done != total:
            raise UnexpectedError(
                f"{self._plan.facts.path}: {self.tiles_done} of {counted(total, 'tile')} were encoded "
                "when the bag was closed; report this."
            )
        lost_scale = any(ok.size and not ok.any() for ok in self._ok)
        if self.tiles_failed > MAX_FAILED_SHARE * total or lost_scale:
            raise SlideCorrupt(
                f"{self._plan.facts.path}: {self.tiles_failed} of {counted(total, 'tile')} cannot be "
                "decoded; copy the file again from its source."
            )
        names = self._plan.recipe.names
        planned = dict(zip(names, self._plan.scales, strict=True))
        ok = dict(zip(names, self._ok, strict=True))
        return Bag(
            slide_id=self._plan.facts.slide_id,
            scales=self._plan.recipe.scales,
            features={n: _kept(f, ok[n]) for n, f in zip(names, self._features, strict=True)},
            coords={n: planned[n].coords[ok[n]] for n in names},
            parent=_surviving_parents({n: planned[n].parent for n in names}, ok),
            tissue={n: planned[n].tissue[ok[n]] for n in names},
        )

    def extracted(self) -> ExtractedSlide:
        """The slide with its bag; errors as :meth:`finish`."""
        return ExtractedSlide(
            facts=self._plan.facts,
            tile_size_level0={scale.name: scale.size_level0 for scale in self._plan.scales},
            planned=self._plan.counts(),
            tiles_failed=self.tiles_failed,
            bag=self.finish(),
        )


def _kept(features: Float32, ok: BoolMask) -> Float32:
    """The rows of ``features`` that are ``ok``, in place: a second array might not fit into memory."""
    if ok.all():
        return features
    rows = np.flatnonzero(ok)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]  # none lies before the place it moves to
        features[start : start + len(part)] = features[part]
    return features[: len(rows)]


def _surviving_parents(parent: Mapping[str, Int64], ok: Mapping[str, BoolMask]) -> dict[str, Int64]:
    """Parents as rows of what is left; -1 where the parent itself was lost."""
    links: dict[str, Int64] = {}
    above: Int64 = np.array([-1], dtype=np.int64)
    for name, rows in parent.items():
        links[name] = above[rows[ok[name]]]
        new_row = np.where(ok[name], np.cumsum(ok[name]) - 1, -1)
        above = np.append(new_row, -1).astype(np.int64)
    return links


_Source = Callable[[], Generator[EncodedBatch]]
"""Starts what a worker gives."""


class _Shared:
    """What the worker threads of one extraction share."""

    def __init__(self, todo: Iterator[TileBatch]) -> None:
        self._todo, self._lock = todo, threading.Lock()
        self.done: queue.Queue[EncodedBatch | BaseException | None] = queue.Queue(maxsize=8)
        self.stop = threading.Event()

    def batches(self) -> Iterator[TileBatch]:
        """Those that no other worker has taken."""
        while True:
            with self._lock:
                batch = next(self._todo, None)
            if batch is None:
                return
            yield batch


def extract_bag(
    plan: TilePlan,
    engine: Engine,
    dim: int,
    *,
    workers: int | None = None,
    cancel: threading.Event | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BagBuilder:
    """Read and encode every tile of ``plan`` by ``workers`` threads, or processes of the encoder's.

    Args:
        plan: from :func:`~cmamil_sdk.tiling.plan.make_plan`.
        engine: the encoder, which the threads share; an :class:`IsolatedEncoder` reads the slide itself.
        dim: length of a feature vector.
        workers: how many; default one per core, and one where the encoder's GPU decodes.
        cancel: checked between batches.
        on_progress: called in this thread with tiles done and tiles in all.

    Raises:
        Cancelled: ``cancel`` was set.
        CmamilError: whatever reading or encoding raised, once all threads have ended.
    """
    device = decoding_device(plan.facts.reader, engine.info)
    batches, builder = plan.batches(call_tiles(device)), BagBuilder(plan, dim)
    count = builder.workers = max(1, min(worker_count(workers, device), len(batches)))

    def on_open(facts: SlideFacts) -> None:
        if device != "cpu":
            builder.reader_reason = facts.reader_reason

    shared = _Shared(iter(batches))
    sources: list[_Source]
    if device != "cpu" and isinstance(engine, IsolatedEncoder):
        numbers = range(len(batches))
        shares = [numbers[first::count] for first in range(count)]
        encode = partial(engine.encode, plan, batches, on_open=on_open, stop=shared.stop)
        sources = [partial(encode, share) for share in shares]
    else:
        sources = [partial(_read_and_encode, plan, engine, device, shared, on_open)] * count
    threads = [
        threading.Thread(target=_work, args=(source, shared), daemon=True) for source in sources
    ]
    for thread in threads:
        thread.start()
    try:
        _collect(builder, shared, count, cancel, on_progress, plan.total_tiles())
    finally:
        shared.stop.set()
        for thread in threads:
            while thread.is_alive():
                _drain(shared.done)
                thread.join(timeout=0.01)
    return builder


def _read_and_encode(
    plan: TilePlan,
    engine: Engine,
    device: str,
    shared: _Shared,
    on_open: Callable[[SlideFacts], None],
) -> Generator[EncodedBatch]:
    """Features of the batches that no other thread takes."""
    path = Path(plan.facts.path)
    with open_slide(path, reader=plan.facts.reader, device=device) as reader:
        on_open(reader.facts)
        yield from encode_all(reader, shared.batches(), engine)


def _work(source: _Source, shared: _Shared) -> None:
    try:
        with closing(source()) as results:
            for encoded in results:
                shared.done.put(encoded)
                if shared.stop.is_set():
                    break
        shared.done.put(None)
    except Exception as problem:  # noqa: BLE001
        # A thread's exception would be lost: it is handed over and raised by the caller.
        shared.done.put(problem)


def _collect(
    builder: BagBuilder,
    shared: _Shared,
    workers: int,
    cancel: threading.Event | None,
    on_progress: Callable[[int, int], None] | None,
    total: int,
) -> None:
    while workers:
        if cancel is not None and cancel.is_set():
            raise Cancelled
        try:
            item = shared.done.get(timeout=0.1)
        except queue.Empty:
            continue
        if item is None:
            workers -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            builder.add(item)
            if on_progress is not None:
                on_progress(builder.tiles_done, total)


def _drain(done: queue.Queue[EncodedBatch | BaseException | None]) -> None:
    while True:
        try:
            done.get_nowait()
        except queue.Empty:
            return


__all__ = ["MAX_FAILED_SHARE", "BagBuilder", "Cancelled", "ExtractTimes", "extract_bag"]
