"""Predictions as clients ask for them: plain, repeated, at the same time, cut short, of bad slides."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from grpc.aio import UsageError

from cmamil_sdk._client_calls import Question, prediction_request
from cmamil_sdk._client_results import prediction_from
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import DeadlineExceeded, DeadlineTooShort, RequestIdReused, ServerUnreachable
from cmamil_sdk.predict import Prediction

from .slides import BAD
from .traffic import Client, Traffic, cancelled_after

STREAM, UNARY = "StreamPredictSlide", "PredictSlide"
_IDS = 24


async def stream(traffic: Traffic, client: AsyncClient, slide: str, **options: Any) -> Prediction:
    """One prediction, right to the last bit."""
    call = client.predict(slide, **options)
    found = await traffic.ledger.ask(STREAM, call, hurried="timeout_s" in options)
    traffic.known.check(slide, found)
    return found


async def unary(traffic: Traffic, client: AsyncClient, slide: str, **options: Any) -> Prediction:
    """The same without progress."""
    given = {"mpp": None, "top_k": 16, "attention": False, "model": None, "expected_sha256": ""}
    question = Question(
        f"/cmamil.v1.SlidePredictionService/{UNARY}",
        prediction_request(slide, **{**given, "request_id": "", "bypass_cache": False, **options}),
        prediction_pb2.PredictSlideResponse,
        prediction_from,
        timeout_s=None,
    )
    found = await traffic.ledger.ask(UNARY, client._ask(question))
    traffic.known.check(slide, found)
    return found


async def good(traffic: Traffic, client: Client) -> None:
    """One prediction, from the cache where that has it."""
    way = traffic.rng.choice([stream, unary])
    await traffic.ended("answered", way(traffic, client.connection, traffic.slide()))


async def uncached(traffic: Traffic, client: Client) -> None:
    """One that is read and encoded for this request alone."""
    way = traffic.rng.choice([stream, stream, unary])
    call = way(traffic, client.connection, traffic.slide(), bypass_cache=True)
    found = await traffic.ended("answered", call)
    assert found is None or found.feature_source == "computed"


async def at_once(traffic: Traffic, client: Client) -> None:
    """Four equal requests at a time, one of which may leave before it is answered."""
    slide, leaves_s = traffic.slide(), traffic.rng.uniform(0.0, 0.4)
    ways = traffic.rng.choices([stream, unary], k=3)
    calls = [traffic.ended("answered", way(traffic, client.connection, slide)) for way in ways]
    await asyncio.gather(_leaving(traffic, client, slide, leaves_s), *calls)


async def again(traffic: Traffic, client: Client) -> None:
    """A request that was made before, with its id: the answer is the one that was given then."""
    number = traffic.rng.randrange(_IDS)
    identity = str(uuid.UUID(int=number + (1 << 76) * 4 + (1 << 63), version=4))
    slide = traffic.slides[number % len(traffic.slides)]
    ways = traffic.rng.choices([stream, unary], k=2)
    calls = [
        traffic.ended("repeated", way(traffic, client.connection, slide, request_id=identity))
        for way in ways
    ]
    for found in await asyncio.gather(*calls):
        if found is not None:
            assert traffic.remembered.setdefault(identity, found) == found
    if identity in traffic.remembered:
        another = stream(traffic, client.connection, slide, request_id=identity, top_k=3)
        found = await traffic.ended("?", another, (RequestIdReused, "id refused"))
        assert found is None, "another request was answered as the first one"


async def bad(traffic: Traffic, client: Client) -> None:
    """One of a file that is no slide, or not there."""
    slide, error = traffic.rng.choice(list(BAD.items()))
    way = traffic.rng.choice([stream, unary])
    call = way(traffic, client.connection, slide)
    found = await traffic.ended("?", call, (error, "bad slide"))
    assert found is None, f"{slide} was predicted"


async def hurried(traffic: Traffic, client: Client) -> None:
    """One with a deadline that may be too short."""
    allowed_s = traffic.rng.uniform(0.01, 0.5)
    started_s = time.monotonic()
    late = (DeadlineExceeded, "out of time"), (DeadlineTooShort, "out of time")
    call = stream(
        traffic, client.connection, traffic.slide(), timeout_s=allowed_s, bypass_cache=True
    )
    await traffic.ended("answered", call, *late)
    traffic.latest_s = max(traffic.latest_s, time.monotonic() - started_s - allowed_s)


async def cancelled(traffic: Traffic, client: Client) -> None:
    """One that is cancelled, unless it is answered before."""
    bypass = traffic.rng.random() < 0.7
    after_s = traffic.rng.uniform(0.0, 0.3)
    await _leaving(traffic, client, traffic.slide(), after_s, bypass_cache=bypass)


async def cancelled_soon(traffic: Traffic, client: Client) -> None:
    """The same, sooner, and of one that has to be read and encoded."""
    after_s = traffic.rng.uniform(0.0, 0.15)
    await _leaving(traffic, client, traffic.slide(), after_s, bypass_cache=True)


async def vanishing(traffic: Traffic, _client: Client) -> None:
    """One of a client whose connection closes in the middle of it."""
    client = traffic.connect()
    call = stream(traffic, client, traffic.slide(), bypass_cache=True)
    work = asyncio.create_task(traffic.ended("answered", call, (ServerUnreachable, "vanished")))
    await asyncio.wait([work], timeout=traffic.rng.uniform(0.0, 0.2))
    await client.close()
    try:
        await work
    except (asyncio.CancelledError, UsageError):  # the latter where it was to be tried again
        traffic.outcomes["vanished"] += 1


async def _leaving(
    traffic: Traffic, client: Client, slide: str, after_s: float, *, bypass_cache: bool = False
) -> None:
    work = stream(traffic, client.connection, slide, bypass_cache=bypass_cache)
    call = traffic.ended("answered", work)
    if await cancelled_after(after_s, call):
        traffic.outcomes["cancelled"] += 1
