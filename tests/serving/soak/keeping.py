"""Jobs and uploads: what a server keeps for its clients, and has to forget when they are done."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from cmamil_sdk._client_uploads import SlideFile
from cmamil_sdk._proto.cmamil.v1 import slide_pb2
from cmamil_sdk.client import AsyncClient, PredictionJob
from cmamil_sdk.errors import (
    DecoderCrashed,
    JobFinished,
    JobNotFound,
    ModelNotFound,
    SlideNotFound,
    UploadIncomplete,
)

from ..uploading import UPLOAD
from .traffic import Client, Traffic, cancelled_after

CREATE, GET, WATCH = "CreatePredictionJob", "GetPredictionJob", "WatchPredictionJob"
CANCEL, DELETE = "CancelPredictionJob", "DeletePredictionJob"
_LOOK_EVERY_S = 0.1


async def job(traffic: Traffic, client: Client) -> None:
    """A job, made twice by its request id; it is watched, looked at, cancelled or deleted at once."""
    connection, ask, slide = client.connection, traffic.ledger.ask, traffic.slide()
    given: dict[str, Any] = {
        "request_id": str(uuid.UUID(int=traffic.rng.getrandbits(128), version=4)),
        "bypass_cache": traffic.rng.random() < 0.5,
    }
    both = (ask(CREATE, connection.create_job(slide, **given)) for _ in range(2))
    made, same = await asyncio.gather(*both)
    assert made.name == same.name
    fate = traffic.rng.choice([_watched, _looked_at, _cancelled, None])
    if fate is not None:
        ended = await fate(traffic, connection, made.name)
        _check(traffic, slide, ended)
    await ask(DELETE, connection.delete_job(made.name))
    traffic.outcomes["job"] += 1
    gone = ask(GET, connection.job(made.name))
    assert await traffic.ended("?", gone, (JobNotFound, "job gone")) is None


def _check(traffic: Traffic, slide: str, ended: PredictionJob) -> None:
    match ended.state:
        case "SUCCEEDED":
            traffic.known.check(slide, ended.prediction)
        case "FAILED":  # a worker was killed, or the version that the job is for unloaded
            assert isinstance(ended.error, DecoderCrashed | ModelNotFound), ended.error
        case _:
            assert ended.state == "CANCELLED"


async def _watched(traffic: Traffic, client: AsyncClient, name: str) -> PredictionJob:
    """To its end, by a watcher that goes away now and then."""
    ask = traffic.ledger.ask
    await cancelled_after(traffic.rng.uniform(0.0, 0.2), ask(WATCH, client.watch_job(name)))
    ended = await ask(WATCH, client.watch_job(name))
    assert ended.state in ("SUCCEEDED", "FAILED")
    return ended


async def _looked_at(traffic: Traffic, client: AsyncClient, name: str) -> PredictionJob:
    while not (found := await traffic.ledger.ask(GET, client.job(name))).has_ended:
        await asyncio.sleep(_LOOK_EVERY_S)
    assert found.state in ("SUCCEEDED", "FAILED")
    return found


async def _cancelled(traffic: Traffic, client: AsyncClient, name: str) -> PredictionJob:
    await asyncio.sleep(traffic.rng.uniform(0.0, 0.3))
    call = traffic.ledger.ask(CANCEL, client.cancel_job(name))
    found = await traffic.ended("job cancelled", call, (JobFinished, "job finished"))
    return found or await traffic.ledger.ask(GET, client.job(name))


async def upload(traffic: Traffic, client: Client) -> None:
    """A slide that is sent twice at a time, predicted by its id, and deleted."""
    connection, ask = client.connection, traffic.ledger.ask
    slide, path = traffic.rng.choice(list(client.uploads.items()))
    both = (ask("UploadSlide", connection.upload_slide(path)) for _ in range(2))
    stored, same = await asyncio.gather(*both)
    assert stored.slide_id == same.slide_id
    await traffic.ended("uploaded", _by_id(traffic, connection, slide, stored.uri))
    await ask("DeleteSlide", connection.delete_slide(stored.slide_id))
    gone = ask("StreamPredictSlide", connection.predict(stored.uri))
    assert await traffic.ended("?", gone, (SlideNotFound, "upload gone")) is None


async def _by_id(traffic: Traffic, client: AsyncClient, slide: str, uri: str) -> None:
    found = await traffic.ledger.ask("StreamPredictSlide", client.predict(uri))
    traffic.known.check(slide, found)


async def half_upload(traffic: Traffic, client: Client) -> None:
    """A slide of which half is sent; then the call is cancelled, or ended as if that were all."""
    path = traffic.rng.choice(list(client.uploads.values()))
    cut = traffic.rng.random() < 0.5
    call = traffic.ledger.ask("UploadSlide", send_half(client.connection, path, cut=cut))
    if cut:
        await traffic.ended("?", call, (UploadIncomplete, "half uploaded"))
    elif await cancelled_after(traffic.rng.uniform(0.0, 0.2), call):
        traffic.outcomes["half uploaded"] += 1


async def send_half(client: AsyncClient, path: Path, *, cut: bool) -> None:
    file = SlideFile(path, None)

    async def messages() -> AsyncIterator[slide_pb2.UploadSlideRequest]:
        async for message in file.messages_on_a_loop():
            if message.chunk:
                yield slide_pb2.UploadSlideRequest(chunk=message.chunk[: len(message.chunk) // 2])
                if not cut:
                    await asyncio.sleep(60.0)
                return
            yield message

    method = client._connected().stream_unary(
        UPLOAD,
        request_serializer=slide_pb2.UploadSlideRequest.SerializeToString,
        response_deserializer=slide_pb2.UploadSlideResponse.FromString,
    )
    try:
        await method(messages(), timeout=60.0, metadata=client._connection.metadata)
    except grpc.RpcError as problem:
        raise client._refusal(problem).error from problem
