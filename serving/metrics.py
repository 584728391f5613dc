"""What the server counts, under the names that Prometheus reads; slides are never named.

Calls and batches are counted when they end; what waits and works is looked at when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.tiling.plan import TilePlan

from .calls import Call

_CALL_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_STAGE_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LAG_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 5)
_TILES = (1, 4, 8, 16, 24, 32, 48, 64, 128, 256)
_GIVEN_UP = ("CANCELLED", "DEADLINE_EXCEEDED")
_NOBODYS = "UNAUTHENTICATED"
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Now:
    """What waits and works at this moment.

    Attributes:
        active_slides, queued_slides, queued_batches: at work; waiting; waiting for a worker.
        worker_restarts: since the start.
        jobs: prediction jobs by state, of those that have not ended.
        cache_bytes: length of all entries in the cache of features.
        runtimes: ``(model, version, part, provider)`` of each engine in use.
    """

    active_slides: int = 0
    queued_slides: int = 0
    queued_batches: int = 0
    worker_restarts: int = 0
    jobs: tuple[tuple[str, int], ...] = (("pending", 0), ("running", 0))
    cache_bytes: int = 0
    runtimes: tuple[tuple[str, str, str, str], ...] = field(default=())


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, now: Callable[[], Now]) -> None:
        """``now`` is asked at each reading."""
        self.now = now
        self.registry = registry = CollectorRegistry()
        self._calls = Counter(
            "cmamil_requests",
            "Calls that ended, by gRPC status.",
            ("rpc", "model", "version", "code"),
            registry=registry,
        )
        self._durations = Histogram(
            "cmamil_request_duration_seconds",
            "From the first byte of a call to its end.",
            ("rpc",),
            buckets=_CALL_S,
            registry=registry,
        )
        self._stages = Histogram(
            "cmamil_stage_duration_seconds",
            "Stages of predictions; decode and encode as a worker's mean.",
            ("stage",),
            buckets=_STAGE_S,
            registry=registry,
        )
        self._waits = Histogram(
            "cmamil_queue_wait_seconds",
            "How long predictions waited for their turn.",
            buckets=_STAGE_S,
            registry=registry,
        )
        self._tiles = Counter(
            "cmamil_tiles",
            "Tiles that workers read, and those left out of the slides that they read.",
            ("result",),
            registry=registry,
        )
        self._batches = Histogram(
            "cmamil_batch_size",
            "Tiles of a batch, of all its slides.",
            buckets=_TILES,
            registry=registry,
        )
        self._cancelled = Counter(
            "cmamil_cancelled",
            "Predictions cancelled or out of time, by the stage they were in.",
            ("stage",),
            registry=registry,
        )
        self._jobs_ended = Counter(
            "cmamil_jobs_ended", "Prediction jobs that ended.", ("state",), registry=registry
        )
        for state in _ENDS:
            self._jobs_ended.labels(state)
        self._hits = Counter(
            "cmamil_cache_hits", "Slides whose features were in the cache.", registry=registry
        )
        self._misses = Counter(
            "cmamil_cache_misses", "Slides whose features were not.", registry=registry
        )
        self._lag = Histogram(
            "cmamil_event_loop_lag_seconds",
            "How late the server's event loop did what was due, looked at 50 times a second.",
            buckets=_LAG_S,
            registry=registry,
        )
        registry.register(_Gauges(now))
        ProcessCollector(registry=registry)

    def count_call(self, call: Call) -> None:
        """Count a call that ended."""
        # Who has no token may call any name, and each would be a series of its own.
        rpc = "any" if call.code == _NOBODYS else call.rpc
        model, _, version = call.model.partition("/")
        self._calls.labels(rpc, model, version, call.code).inc()
        self._durations.labels(rpc).observe(call.took_s)
        self._count_work(call)

    def count_job(self, call: Call, state: str) -> None:
        """Count a prediction job that ended ``succeeded``, ``failed`` or ``cancelled``."""
        self._jobs_ended.labels(state).inc()
        self._count_work(call)

    def _count_work(self, call: Call) -> None:
        for stage, seconds in call.seconds.items():
            if stage == "queued":
                self._waits.observe(seconds)
            elif stage != "total":
                self._stages.labels(stage).observe(seconds)
        if call.stage and call.code in _GIVEN_UP:
            self._cancelled.labels(call.stage).inc()

    def count_batch(self, parts: Sequence[EncodedBatch]) -> None:
        """Count a batch that a worker has done, in its parts of one slide each."""
        tiles = sum(len(part.batch) for part in parts)
        ok = sum(int(part.ok.sum()) for part in parts)
        self._batches.observe(tiles)
        self._tiles.labels("ok").inc(ok)
        self._tiles.labels("failed").inc(tiles - ok)

    def count_plan(self, plan: TilePlan) -> None:
        """Count the tiles that the plan of a slide leaves out."""
        left_out = plan.geometry.tiles_in_bounds() - plan.total_tiles()
        self._tiles.labels("background").inc(left_out)

    def count_look_up(self, found: bool) -> None:
        """Count a search in the cache of features."""
        (self._hits if found else self._misses).inc()

    def count_lag(self, seconds: float) -> None:
        """Count a look at the event loop, which was so late."""
        self._lag.observe(seconds)

    def look_ups(self, *, found: bool) -> int:
        """Searches in the cache of features that found something, or did not."""
        name = "cmamil_cache_hits_total" if found else "cmamil_cache_misses_total"
        return int(self.registry.get_sample_value(name) or 0)

    def jobs_ended(self) -> Iterator[tuple[str, int]]:
        """``(state, count)``."""
        for state in _ENDS:
            labels = {"state": state}
            found = self.registry.get_sample_value("cmamil_jobs_ended_total", labels)
            yield state, int(found or 0)

    def calls(self) -> Iterator[tuple[str, str, str, int]]:
        """``(rpc, model, code, count)``; the model as ``NAME/VERSION``."""
        for name, labels, value in _samples(self._calls):
            if name == "cmamil_requests_total":
                model = f"{labels['model']}/{labels['version']}" if labels["model"] else ""
                yield labels["rpc"], model, labels["code"], int(value)

    def durations(self) -> Iterator[tuple[str, int, float]]:
        """``(rpc, count, seconds)``."""
        return _sums(self._durations, "rpc")

    def stages(self) -> Iterator[tuple[str, int, float]]:
        """``(stage, count, seconds)``, the wait for their turn first."""
        for _, count, seconds in _sums(self._waits, ""):
            yield "queued", count, seconds
        yield from _sums(self._stages, "stage")

    def cancelled(self) -> Iterator[tuple[str, int]]:
        """``(stage, count)``."""
        for name, labels, value in _samples(self._cancelled):
            if name == "cmamil_cancelled_total":
                yield labels["stage"], int(value)

    def tiles(self, result: str) -> int:
        """Tiles with that result: ``ok`` or ``failed``."""
        found = self.registry.get_sample_value("cmamil_tiles_total", {"result": result})
        return int(found or 0)

    def batches(self) -> int:
        """Batches that workers have done."""
        return int(self.registry.get_sample_value("cmamil_batch_size_count") or 0)


class _Gauges(Collector):
    def __init__(self, now: Callable[[], Now]) -> None:
        self._now = now

    def collect(self) -> Iterable[Metric]:
        now = self._now()
        yield GaugeMetricFamily(
            "cmamil_inflight_slides", "Requests at work.", value=now.active_slides
        )
        depth = GaugeMetricFamily(
            "cmamil_queue_depth", "What waits: slides, and batches of tiles.", labels=["queue"]
        )
        depth.add_metric(["slides"], now.queued_slides)
        depth.add_metric(["batches"], now.queued_batches)
        yield depth
        jobs = GaugeMetricFamily(
            "cmamil_jobs", "Prediction jobs that wait and run.", labels=["state"]
        )
        for state, count in now.jobs:
            jobs.add_metric([state], count)
        yield jobs
        yield CounterMetricFamily(
            "cmamil_decode_worker_restarts",
            "Worker processes that died and were started again.",
            value=now.worker_restarts,
        )
        yield GaugeMetricFamily(
            "cmamil_cache_bytes", "Length of all entries of the cache.", value=now.cache_bytes
        )
        info = GaugeMetricFamily(
            "cmamil_runtime_info",
            "Engine, device and precision of each part of a model, as they run; always 1.",
            labels=["model", "version", "part", "provider"],
        )
        for labels in now.runtimes:
            info.add_metric(list(labels), 1)
        yield info


def _samples(metric: Counter | Histogram) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in metric.collect():
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _sums(metric: Histogram, label: str) -> Iterator[tuple[str, int, float]]:
    """Count and sum of each child of a histogram, by its value of ``label``."""
    counts: dict[str, int] = {}
    for name, labels, value in _samples(metric):
        if name.endswith("_count"):
            counts[labels.get(label, "")] = int(value)
        elif name.endswith("_sum"):
            child = labels.get(label, "")
            yield child, counts[child], value


__all__ = ["Metrics", "Now"]
