"""The asyncio client does what the other one does, against servers that answer as the tests want."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import (
    CmamilError,
    DeadlineExceeded,
    FieldInvalid,
    ModelNotReady,
    QueueFull,
    ServerUnreachable,
    SlideNotFound,
    UnexpectedError,
)
from cmamil_sdk.predict import ProgressEvent

from .answering import Handler, answering, fail, result

_T = TypeVar("_T")
NOBODY = "127.0.0.1:1"


def run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(asyncio.wait_for(work, 30.0))


async def predict(address: str, **options: Any) -> Any:
    async with AsyncClient(address) as client:
        return await client.predict("a.svs", **options)


def counted(calls: list[int], *outcomes: tuple[grpc.StatusCode, str] | None) -> Handler:
    """Answers one call after the other as ``outcomes`` say, the last one for ever; None: a result."""

    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        calls.append(1)
        outcome = outcomes[min(len(calls), len(outcomes)) - 1]
        if outcome is not None:
            fail(context, *outcome)
        yield result()

    return handler


AWAY = (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")


def test_results_and_progress_are_the_other_clients() -> None:
    def handler(data: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        request = prediction_pb2.StreamPredictSlideRequest.FromString(data).request
        assert request.model == "models/m/versions/2" and request.output.top_k == 3
        for stage, done in ((1, 0), (3, 5), (4, 8)):
            progress = prediction_pb2.Progress(stage=stage, done=done, total=8)
            event = prediction_pb2.StreamPredictSlideResponse(progress=progress)
            yield event.SerializeToString()
        yield result()

    options: dict[str, Any] = {"mpp": 0.25, "top_k": 3, "model": "m/2"}
    ours: list[ProgressEvent] = []
    theirs: list[ProgressEvent] = []
    with answering(handler) as address, Client(address) as client:
        expected = client.predict("a.svs", on_progress=theirs.append, **options)
        found = run(predict(address, on_progress=ours.append, **options))
    assert ours == theirs and len(ours) == 4
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize(
    ("outcomes", "asked", "error"),
    [
        ((AWAY, AWAY, None), 3, None),
        ((AWAY,), 4, ModelNotReady),
        (((grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),), 1, QueueFull),
        (((grpc.StatusCode.NOT_FOUND, "SLIDE_NOT_FOUND"),), 1, SlideNotFound),
        (((grpc.StatusCode.INTERNAL, ""),), 1, UnexpectedError),
    ],
)
def test_only_what_is_away_is_asked_again(
    outcomes: tuple[Any, ...], asked: int, error: type[CmamilError] | None
) -> None:
    calls: list[int] = []
    with answering(counted(calls, *outcomes)) as address:
        if error is None:
            assert run(predict(address)).label == "benign"
        else:
            with pytest.raises(error):
                run(predict(address))
    assert len(calls) == asked


def waiting(reached: threading.Event, cancelled: threading.Event) -> Handler:
    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        progress = prediction_pb2.Progress(stage=3, done=1, total=2)
        yield prediction_pb2.StreamPredictSlideResponse(progress=progress).SerializeToString()
        reached.set()
        cancelled.wait(10)

    return handler


def test_a_cancelled_task_cancels_its_call() -> None:
    reached, cancelled = threading.Event(), threading.Event()

    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            work = asyncio.create_task(client.predict("a.svs"))
            await asyncio.to_thread(reached.wait, 10)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert await asyncio.to_thread(cancelled.wait, 2)

    with answering(waiting(reached, cancelled)) as address:
        run(scenario(address))


def test_an_error_in_the_callback_cancels_the_call() -> None:
    reached, cancelled = threading.Event(), threading.Event()

    def stop(_: ProgressEvent) -> None:
        raise ZeroDivisionError

    with answering(waiting(reached, cancelled)) as address:
        with pytest.raises(ZeroDivisionError):
            run(predict(address, on_progress=stop))
        assert cancelled.wait(2)


def test_a_deadline_ends_the_wait() -> None:
    reached, cancelled = threading.Event(), threading.Event()
    with answering(waiting(reached, cancelled)) as address, pytest.raises(DeadlineExceeded):
        run(predict(address, timeout_s=0.3))


def test_a_stream_without_result_is_an_error() -> None:
    def handler(_: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from ()

    with answering(handler) as address, pytest.raises(UnexpectedError, match="without a result"):
        run(predict(address))


def test_nobody_there_and_no_address() -> None:
    async def ask() -> None:
        async with AsyncClient(NOBODY) as client:
            await client.health()

    with pytest.raises(ServerUnreachable, match=NOBODY):
        run(ask())
    with pytest.raises(FieldInvalid, match="HOST:PORT"):
        AsyncClient("host")
    with pytest.raises(FieldInvalid, match="cannot be read"):
        AsyncClient(NOBODY, ca="/no/such/file")


def test_calls_of_one_client_run_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=10)

    def handler(_: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        together.wait()
        yield result()

    async def scenario(client: AsyncClient) -> list[str]:
        async with client:
            both = await asyncio.gather(client.predict("a.svs"), client.predict("b.svs"))
            return [prediction.label for prediction in both]

    with answering(handler) as address:
        # It may be made before the event loop that it is used on.
        assert run(scenario(AsyncClient(address))) == ["benign", "benign"]
