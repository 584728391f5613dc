"""Predictions from the cache, and of requests that share their work, are those of work of their own."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import (
    ConfigInvalid,
    DeadlineExceeded,
    MppUnusable,
    RequestIdReused,
    TooManyTiles,
)
from cmamil_sdk.predict import Prediction, ProgressEvent
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.feature_cache import folder as folder_module
from cmamil_sdk.serving.features import FeatureFinder
from cmamil_sdk.serving.server import Server, background_server

from .waiting import wait_until

PREDICT = "/cmamil.v1.SlidePredictionService/PredictSlide"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def caching(config: ServerConfig, cache: Path, odd_worker: tuple[str, ...]) -> Iterator[Server]:
    """One worker, and one place for work."""
    settings = config.model_copy(update={"cache": cache, "workers": 1, "max_active_slides": 1})
    with background_server(settings, worker_command=odd_worker) as server:
        yield server


@pytest.fixture
def asking(caching: Server) -> Iterator[Client]:
    with Client(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
        yield client


@pytest.fixture
def slow(slides_root: Path) -> Iterator[str]:
    """Name of a slide that nobody has seen: its batches take 0.4 s each."""
    path = slides_root / f"slow-{uuid.uuid4().hex}.svs"
    shutil.copy(slides_root / "a.svs", path)
    with path.open("ab") as file:
        file.write(path.name.encode())  # a content of its own, behind what readers look at
    yield path.name
    path.unlink()


def look_ups(server: Server) -> tuple[int, int]:
    """Hits and misses."""
    value = server._services.metrics.registry.get_sample_value
    return tuple(int(value(f"cmamil_cache_{kind}_total") or 0) for kind in ("hits", "misses"))


def plain(prediction: Prediction) -> Prediction:
    return replace(prediction, seconds={}, maps=())


def assert_same(one: Prediction, other: Prediction) -> None:
    assert plain(one) == plain(other)
    for ours, theirs in zip(one.maps, other.maps, strict=True):
        assert (ours.scale, ours.size) == (theirs.scale, theirs.size)
        for name in ("coords", "attention", "contribution"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def wait_for_entries(cache: Path, count: int) -> set[str]:
    wait_until(lambda: sum(name.endswith(".features") for name in kept(cache)) == count)
    return kept(cache)


def test_a_hit_equals_a_miss_to_the_last_bit(
    asking: Client, caching: Server, client: Client, cache: Path
) -> None:
    events: list[ProgressEvent] = []
    miss = asking.predict("a.svs", attention=True)
    wait_for_entries(cache, 1)
    hit = asking.predict("a.svs", attention=True, on_progress=events.append)
    assert (miss.feature_source, hit.feature_source) == ("computed", "cached")
    assert_same(hit, miss)
    assert_same(hit, client.predict("a.svs", attention=True))
    assert hit.seconds["decode"] == hit.seconds["encode"] == 0 < hit.seconds["aggregate"]
    assert events[-1] == ProgressEvent("aggregate", 1, 1)
    assert look_ups(caching) == (1, 1)
    (entry,) = cache.iterdir()
    assert b"a.svs" not in entry.read_bytes()  # which may name a patient
    assert caching._services.now().cache_bytes == sum(p.stat().st_size for p in cache.iterdir())


def test_what_decides_features_decides_the_entry(asking: Client, cache: Path) -> None:
    renamed = asking.predict("folder/b c.svs")
    assert (renamed.slide, renamed.feature_source) == ("b c", "cached")
    assert asking.predict("a.svs", mpp=0.25).feature_source == "computed"
    entries = wait_for_entries(cache, 2)
    assert asking.predict("a.svs", mpp=0.25).mpp_source == "override"
    assert asking.predict("a.svs", bypass_cache=True).feature_source == "computed"
    with pytest.raises(MppUnusable):
        asking.predict("a.svs", mpp=8.0)
    assert kept(cache) == entries


def test_another_server_uses_the_same_folder(
    config: ServerConfig, cache: Path, asking: Client
) -> None:
    expected = asking.predict("a.svs")
    update = {"cache": cache, "workers": 1, "max_tiles": 40}
    with (
        background_server(config.model_copy(update=update)) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        assert client.predict("a.svs", mpp=0.25).feature_source == "cached"
        with pytest.raises(TooManyTiles, match="52 tiles, the limit is 40"):
            client.predict("a.svs")
        found = asking.predict("a.svs")
        assert found.feature_source == "cached" and plain(found) == plain(expected)


def test_a_damaged_entry_is_computed_anew(
    asking: Client, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = asking.predict("a.svs")
    for path in cache.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    found = asking.predict("a.svs")
    assert found.feature_source == "computed" and plain(found) == plain(expected)
    assert "cache_damaged" in caplog.text and "a.svs" not in caplog.text
    wait_until(lambda: asking.predict("a.svs").feature_source == "cached")


def test_a_full_disk_fails_no_prediction(
    asking: Client,
    cache: Path,
    slow: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = kept(cache)
    monkeypatch.setattr(folder_module, "write_entry", fail)
    for _ in range(2):
        assert asking.predict(slow).feature_source == "computed"
        wait_until(lambda: "cache_not_written" in caplog.text)
    assert kept(cache) == before


def test_a_folder_that_cannot_be_written_to_is_refused(
    config: ServerConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    update = {"cache": tmp_path / "file"}
    with (
        pytest.raises(ConfigInvalid, match="cache"),
        background_server(config.model_copy(update=update)),
    ):
        pass


@pytest.fixture
def gate(caching: Server, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Slides are read only when this is set."""
    finder, opened = finder_of(caching), threading.Event()
    compute = finder._compute

    async def held(*arguments: Any) -> Any:
        while not opened.is_set():
            await asyncio.sleep(0.01)
        return await compute(*arguments)

    monkeypatch.setattr(finder, "_compute", held)
    return opened


def finder_of(server: Server) -> FeatureFinder:
    assert server._services.predictor is not None
    return server._services.predictor._features


async def until_members(server: Server, count: int) -> None:
    """Wait until so many requests share the only work there is."""
    flights = finder_of(server)._flights._flights
    async with asyncio.timeout(20):
        while [len(flight.listeners) for flight in tuple(flights.values())] != [count]:
            await asyncio.sleep(0.01)


def test_requests_in_flight_are_computed_once_and_leave_alone(
    caching: Server, slow: str, gate: threading.Event
) -> None:
    """The first one is cancelled, another runs out of time; the server has one place for work."""
    pool = caching._services.pool
    assert pool is not None
    before = pool.tiles

    async def scenario() -> list[Prediction]:
        async with AsyncClient(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
            first = asyncio.create_task(client.predict(slow))
            await until_members(caching, 1)
            second = asyncio.create_task(client.predict(slow, top_k=2))
            third = asyncio.create_task(client.predict(slow))
            await until_members(caching, 3)
            with pytest.raises(DeadlineExceeded):
                await client.predict(slow, timeout_s=0.5)
            first.cancel()
            await until_members(caching, 2)
            gate.set()
            return await asyncio.gather(second, third)

    second, third = asyncio.run(scenario())
    assert pool.tiles - before == 52
    assert {second.feature_source, third.feature_source} == {"coalesced"}
    assert len(second.top_tiles) == 2 and second.probabilities == third.probabilities
    assert second.seconds["encode"] > 0


def test_the_last_one_leaving_stops_the_work(caching: Server, asking: Client, slow: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
            begun = asyncio.Event()
            works = [
                asyncio.create_task(
                    client.predict(slow, on_progress=lambda e: e.stage == "encode" and begun.set())
                )
                for _ in range(3)
            ]
            await begun.wait()
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    asyncio.run(scenario())
    admission = caching._services.predictor.admission  # type: ignore[union-attr]
    wait_until(lambda: not admission.present and not admission.active, timeout_s=2)
    assert asking.predict(slow).feature_source == "computed"


def test_a_request_id_is_one_request(caching: Server, asking: Client, raw_call: Any) -> None:
    identity = str(uuid.uuid4())
    first = asking.predict("a.svs", request_id=identity, top_k=3)
    events: list[ProgressEvent] = []
    again = asking.predict("a.svs", request_id=identity, top_k=3, on_progress=events.append)
    assert again == first and again.seconds == first.seconds
    with pytest.raises(RequestIdReused, match=identity):
        asking.predict("a.svs", request_id=identity, top_k=4)
    request = prediction_pb2.PredictSlideRequest(
        slide=slide_pb2.SlideSource(uri="folder/b c.svs"), request_id=identity
    ).SerializeToString()
    code, reason, _ = raw_call(f"127.0.0.1:{caching.port}", PREDICT, request)
    assert (code.name, reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


def test_each_answer_has_its_own_request_id(
    caching: Server, slow: str, gate: threading.Event, raw_call: Any
) -> None:
    async def ask(identity: str) -> prediction_pb2.PredictSlideResponse:
        request = prediction_pb2.PredictSlideRequest(
            slide=slide_pb2.SlideSource(uri=slow), request_id=identity
        ).SerializeToString()
        address = f"127.0.0.1:{caching.port}"
        data = await asyncio.to_thread(raw_call, address, PREDICT, request)
        return prediction_pb2.PredictSlideResponse.FromString(data)

    async def scenario() -> list[prediction_pb2.PredictSlideResponse]:
        asked = [asyncio.create_task(ask(identity)) for identity in ids]
        await until_members(caching, 3)
        gate.set()
        return await asyncio.gather(*asked)

    ids = [str(uuid.uuid4()) for _ in range(3)]
    answers = asyncio.run(scenario())
    assert [answer.request_id for answer in answers] == ids
    sources = sorted(answer.feature_source for answer in answers)
    assert sources == [
        prediction_pb2.FEATURE_SOURCE_COMPUTED,
        *[prediction_pb2.FEATURE_SOURCE_COALESCED] * 2,
    ]
