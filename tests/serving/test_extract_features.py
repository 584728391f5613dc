"""Features through the server are those of a local extraction, chunk by chunk."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import h5py
import numpy as np
import pytest

from cmamil_sdk._client_features import FeatureCollector, _check_order
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.bundle import Bundle
from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import (
    FieldInvalid,
    InputError,
    OutputUnwritable,
    SlideHashMismatch,
    SlideNotFound,
    UnexpectedError,
)
from cmamil_sdk.features.bag import Bag
from cmamil_sdk.features.file import FeatureProvenance, read_feature_file
from cmamil_sdk.features.slide import extract_slide
from cmamil_sdk.predict import ProgressEvent
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.feature_stream import CHUNK_BYTES, chunks
from cmamil_sdk.serving.server import Server, background_server
from cmamil_sdk.serving.status import RequestInvalid

from .conftest import _details
from .feature_cache.slides import extracted
from .waiting import wait_until

EXTRACT = "/cmamil.v1.SlidePredictionService/ExtractFeatures"
REQUEST = prediction_pb2.ExtractFeaturesRequest(slide=slide_pb2.SlideSource(uri="a.svs"))


@pytest.fixture(scope="module")
def local(tiny_bundle: Path, slides_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature file that `cmamil features` writes."""
    bundle = Bundle.load(tiny_bundle)
    engine = bundle.open_encoder()
    try:
        return extract_slide(
            slides_root / "a.svs",
            tmp_path_factory.mktemp("local"),
            recipe=bundle.manifest.recipe,
            encoder=bundle.manifest.encoder,
            engine=engine,
            workers=1,
        ).path
    finally:
        engine.close()


@pytest.fixture(scope="module")
def caching(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    update = {"cache": tmp_path_factory.mktemp("cache"), "workers": 1, "max_active_slides": 1}
    with background_server(config.model_copy(update=update)) as server:
        yield server


def assert_same(one: Bag, other: Bag, rtol: float = 0.0) -> None:
    assert (one.slide_id, one.scales) == (other.slide_id, other.scales)
    for kind in ("features", "coords", "parent", "tissue"):
        for scale, array in getattr(one, kind).items():
            found = getattr(other, kind)[scale]
            assert array.dtype == found.dtype
            np.testing.assert_allclose(array, found, rtol=rtol, atol=rtol)


def undated(provenance: FeatureProvenance) -> FeatureProvenance:
    return provenance.model_copy(update={"created": ""})


def test_features_are_those_of_a_local_extraction(
    client: Client, local: Path, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    out = tmp_path / "a.h5"
    bag, provenance = client.extract_features("a.svs", out=out, on_progress=events.append)
    expected, told = read_feature_file(local)
    assert_same(bag, expected)
    assert undated(provenance) == undated(told)
    assert {event.stage for event in events} >= {"queued"}
    written, again = read_feature_file(out)
    assert_same(written, expected)
    assert again == provenance
    with h5py.File(out) as ours, h5py.File(local) as theirs:
        assert set(ours.attrs) == set(theirs.attrs)
        assert ours["scales/20x/features"].dtype == theirs["scales/20x/features"].dtype


def test_the_asyncio_client_and_float16(address: str, local: Path, tmp_path: Path) -> None:
    async def ask() -> tuple[Bag, FeatureProvenance]:
        async with AsyncClient(address, timeout_s=60.0) as client:
            with pytest.raises(SlideNotFound):
                await client.extract_features("absent.svs")
            with pytest.raises(OutputUnwritable):
                await client.extract_features("a.svs", out=local / "beneath-a-file.h5")
            return await client.extract_features("a.svs", dtype="float16")

    bag, _ = asyncio.run(ask())
    expected, _ = read_feature_file(local)
    assert_same(bag, expected, rtol=1e-3)
    assert any((bag.features[s] != expected.features[s]).any() for s in bag.features)


def test_features_and_predictions_share_the_cache(caching: Server, local: Path) -> None:
    with Client(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
        first, provenance = client.extract_features("a.svs")
        cache = caching._services.cache
        assert cache is not None
        wait_until(lambda: cache.bytes > 0)
        assert client.predict("folder/b c.svs").feature_source == "cached"
        second, again = client.extract_features("folder/b c.svs")
    assert (again.slide_id, again.slide_sha256) == ("b c", provenance.slide_sha256)
    for scale, rows in first.features.items():
        np.testing.assert_array_equal(rows, second.features[scale])
    assert_same(first, read_feature_file(local)[0])
    value = caching._services.metrics.registry.get_sample_value
    assert (value("cmamil_cache_hits_total"), value("cmamil_cache_misses_total")) == (2, 1)


def test_what_is_wrong_is_typed(client: Client, address: str) -> None:
    with pytest.raises(SlideHashMismatch):
        client.extract_features("a.svs", expected_sha256="0" * 64)
    with pytest.raises(InputError):
        client.extract_features("text.svs")
    with pytest.raises(FieldInvalid, match="dtype"):
        client.extract_features("a.svs", dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(FieldInvalid, match="request_id: must be a UUID"):
        client.extract_features("a.svs", request_id="seven")
    wrong = prediction_pb2.ExtractFeaturesRequest.FromString(REQUEST.SerializeToString())
    wrong.feature_type = 7  # type: ignore[assignment]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(EXTRACT)(wrong.SerializeToString(), timeout=20))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_events_are_numbered_and_carry_the_id(address: str) -> None:
    identity = str(uuid.uuid4())
    request = prediction_pb2.ExtractFeaturesRequest(
        slide=slide_pb2.SlideSource(uri="a.svs"), request_id=identity
    )
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(
            EXTRACT, response_deserializer=prediction_pb2.ExtractFeaturesResponse.FromString
        )
        events = list(call(request.SerializeToString(), timeout=30))
    kinds = [event.WhichOneof("event") for event in events]
    assert [event.sequence for event in events] == list(range(len(events)))
    assert {event.request_id for event in events} == {identity}
    assert kinds[0] == "accepted" and kinds[-1] == "summary" and kinds.count("summary") == 1
    assert [event.chunk.scale for event in events if event.WhichOneof("event") == "chunk"] == [
        "5x",
        "10x",
        "20x",
    ]
    assert events[-1].summary.timings.total.ToNanoseconds() > 0


def test_chunks_are_small_and_together_whole() -> None:
    slide = extracted(tiles=300, dim=1280)
    parts = list(chunks(slide.bag, prediction_pb2.FEATURE_TYPE_FLOAT32))
    sizes = [part.ByteSize() for part in parts]
    assert max(sizes) <= CHUNK_BYTES and len(parts) == 8
    assert max(sizes) > CHUNK_BYTES * 0.99
    rows = np.concatenate(
        [np.frombuffer(p.features, "<f4").reshape(-1, 1280) for p in parts if p.scale == "20x"]
    )
    np.testing.assert_array_equal(rows, slide.bag.features["20x"])
    slide.bag.features["20x"][5, 5] = 1e6
    with pytest.raises(RequestInvalid, match="FEATURE_TYPE_FLOAT32"):
        list(chunks(slide.bag, prediction_pb2.FEATURE_TYPE_FLOAT16))


def test_a_client_notices_what_is_missing() -> None:
    collector = FeatureCollector("float32", None)
    bag = extracted().bag
    for chunk in chunks(bag, prediction_pb2.FEATURE_TYPE_FLOAT32):
        if chunk.scale == "20x":
            chunk.first_row = 1
        assert collector.take(prediction_pb2.ExtractFeaturesResponse(chunk=chunk)) is None
    parts = collector._parts
    with pytest.raises(UnexpectedError, match="0 of 28 tiles at 20x"):
        _check_order(parts["20x"], slide_pb2.ScaleTiles(scale="20x", tiles=28))


def test_warnings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    collector = FeatureCollector("float32", on_warning=told.append)
    monkeypatch.setattr(collector, "_joined", lambda _summary: None)
    summary = prediction_pb2.FeatureSummary(warnings=["the encoder misses its gate"])
    collector.take(prediction_pb2.ExtractFeaturesResponse(summary=summary))
    assert told == ["the encoder misses its gate"]


class StuckContext:
    """Takes no chunk."""

    def __init__(self) -> None:
        self.stuck = asyncio.Event()

    def time_remaining(self) -> float:
        return 30.0

    async def write(self, message: bytes) -> None:
        event = prediction_pb2.ExtractFeaturesResponse.FromString(message)
        if event.WhichOneof("event") == "chunk":
            self.stuck.set()
            await asyncio.Event().wait()


def test_a_slow_client_holds_its_features_and_no_worker(caching: Server) -> None:
    """One place for a stream: while it is taken predictions go on, and a cancelled call frees it."""
    stream = caching._services._feature_stream
    context, data = StuckContext(), REQUEST.SerializeToString()

    async def call() -> None:
        work = asyncio.create_task(stream._extract_features(data, context))
        await context.stuck.wait()
        assert stream._streams == 1
        with Client(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
            found = await asyncio.to_thread(client.predict, "a.svs", bypass_cache=True)
            assert found.label
        code, reason, _ = await asyncio.to_thread(_refused, caching)
        assert (code.name, reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert stream._streams == 0

    loop = caching._services.pool.slots[0].ready.get_loop()  # type: ignore[union-attr]
    asyncio.run_coroutine_threadsafe(call(), loop).result(60)
    with Client(f"127.0.0.1:{caching.port}", timeout_s=60.0) as client:
        assert client.extract_features("a.svs")[0].dim == 1280


class UnloadingContext(StuckContext):
    """Has the model withdrawn while it is told that the request is in."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        (self._model,) = server._services.models.loaded()
        self.events: list[str] = []

    async def write(self, message: bytes) -> None:
        event = prediction_pb2.ExtractFeaturesResponse.FromString(message)
        self.events.append(str(event.WhichOneof("event")))
        self._model.is_withdrawn = self.events[-1] != "summary"


def test_a_request_that_is_in_keeps_its_model(caching: Server) -> None:
    context = UnloadingContext(caching)
    call = caching._services._feature_stream._extract_features(REQUEST.SerializeToString(), context)
    loop = caching._services.pool.slots[0].ready.get_loop()  # type: ignore[union-attr]
    try:
        asyncio.run_coroutine_threadsafe(call, loop).result(60)
    finally:
        context._model.is_withdrawn = False
    assert context.events[0] == "accepted" and context.events[-1] == "summary"


def _refused(server: Server) -> Any:
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        list(channel.unary_stream(EXTRACT)(REQUEST.SerializeToString(), timeout=20))
    return _details(caught.value)
