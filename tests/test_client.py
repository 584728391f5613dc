"""The client against servers that answer as the tests want."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cmamil_sdk._client_calls import slide_source
from cmamil_sdk._client_jobs import job_from
from cmamil_sdk._proto.cmamil.v1 import prediction_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.errors import (
    CmamilError,
    DeadlineExceeded,
    FieldInvalid,
    ModelNotReady,
    QueueFull,
    ServerUnreachable,
    SlideNotFound,
    UnexpectedError,
    leaf_errors,
)
from cmamil_sdk.predict import ProgressEvent

from .answering import answering, fail, result


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize("leaf", leaf_errors().values(), ids=lambda leaf: leaf.__name__)
def test_every_leaf_comes_back_as_itself(leaf: type[CmamilError]) -> None:
    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        fail(context, grpc.StatusCode[leaf.grpc_status], leaf("").reason)
        yield b""

    with (
        answering(handler) as address,
        Client(address) as client,
        pytest.raises(leaf, match="sentence"),
    ):
        client.predict("a.svs")


def test_results_and_progress_become_the_librarys_types() -> None:
    def handler(data: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
        request = prediction_pb2.StreamPredictSlideRequest.FromString(data).request
        assert request.slide.uri == "a.svs" and request.model == "models/m/versions/2"
        assert request.tiling.mpp_override == 0.25 and request.output.top_k == 3
        for stage, done in ((1, 0), (2, 0), (3, 5), (4, 8)):
            progress = prediction_pb2.Progress(stage=stage, done=done, total=8)
            event = prediction_pb2.StreamPredictSlideResponse(progress=progress)
            yield event.SerializeToString()
        yield result()

    seen: list[ProgressEvent] = []
    with answering(handler) as address, Client(address) as client:
        found = client.predict("a.svs", mpp=0.25, top_k=3, model="m/2", on_progress=seen.append)
    assert [(event.stage, event.done) for event in seen] == [
        ("queued", 0), ("tissue", 0), ("encode", 5), ("aggregate", 0), ("aggregate", 1),
    ]  # fmt: skip
    assert found.probabilities == {"benign": 1.0} and found.mpp_source == "override"
    scale_map, silent = found.maps
    assert scale_map.coords.tolist() == [[1, 2]] and scale_map.contribution.tolist() == [[0.25]]
    assert silent.coords.tolist() == [[3, 4]]
    assert silent.attention is silent.contribution is None
    assert found.coarse is None and found.to_json()["label"] == "benign"


def test_an_unavailable_server_is_asked_again_and_then_answers() -> None:
    calls = []

    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        calls.append(1)
        if len(calls) < 3:
            fail(context, grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
        yield result()

    with answering(handler) as address, Client(address) as client:
        assert client.predict("a.svs").label == "benign"
    assert len(calls) == 3


def test_retries_are_bounded() -> None:
    calls = []

    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        calls.append(1)
        fail(context, grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
        yield b""

    with answering(handler) as address, Client(address) as client, pytest.raises(ModelNotReady):
        client.predict("a.svs")
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", QueueFull),
        (grpc.StatusCode.NOT_FOUND, "SLIDE_NOT_FOUND", SlideNotFound),
        (grpc.StatusCode.INTERNAL, "", UnexpectedError),
        (grpc.StatusCode.UNIMPLEMENTED, "", ServerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, "", ServerUnreachable),
        (grpc.StatusCode.UNKNOWN, "FROM_ANOTHER_VERSION", UnexpectedError),
    ],
)
def test_nothing_else_is_retried(
    code: grpc.StatusCode, reason: str, error: type[CmamilError]
) -> None:
    calls = []

    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        calls.append(1)
        fail(context, code, reason, retry_s=1)
        yield b""

    with answering(handler) as address, Client(address) as client, pytest.raises(error):
        client.predict("a.svs")
    assert len(calls) == 1


def test_foreign_details_are_no_trouble() -> None:
    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.ABORTED, "odd")
        yield b""

    with (
        answering(handler) as address,
        Client(address) as client,
        pytest.raises(UnexpectedError, match="ABORTED"),
    ):
        client.predict("a.svs")


def test_a_stream_without_result_is_an_error() -> None:
    def handler(_: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        accepted = prediction_pb2.Accepted(queue_position=1)
        yield prediction_pb2.StreamPredictSlideResponse(accepted=accepted).SerializeToString()

    with (
        answering(handler) as address,
        Client(address) as client,
        pytest.raises(UnexpectedError, match="without a result"),
    ):
        client.predict("a.svs")


def test_an_error_in_the_callback_cancels_the_call() -> None:
    cancelled = threading.Event()

    def handler(_: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        progress = prediction_pb2.Progress(stage=3, done=1, total=2)
        yield prediction_pb2.StreamPredictSlideResponse(progress=progress).SerializeToString()
        cancelled.wait(10)

    def stop(_: ProgressEvent) -> None:
        raise KeyboardInterrupt

    with answering(handler) as address, Client(address) as client:
        with pytest.raises(KeyboardInterrupt):
            client.predict("a.svs", on_progress=stop)
        assert cancelled.wait(2)


def test_a_deadline_ends_the_wait() -> None:
    given_up = threading.Event()

    def handler(_: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        given_up.wait(30)
        yield result()

    with answering(handler) as address, Client(address) as client:
        with pytest.raises(DeadlineExceeded):
            client.predict("a.svs", timeout_s=0.2)
        given_up.set()


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(address) as client:
            started = time.monotonic()
            with pytest.raises(ServerUnreachable, match=address):
                client.health()
            assert time.monotonic() - started < 1.0
            with pytest.raises(ServerUnreachable, match="cmamil serve"):
                client.predict("a.svs")
            assert time.monotonic() - started < 6.0


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:http"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(FieldInvalid, match="HOST:PORT"):
        Client(address)


def test_the_client_needs_neither_torch_nor_onnxruntime() -> None:
    program = (
        "import sys, cmamil_sdk.client\n"
        "assert not {'torch', 'onnxruntime', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_worker_program_loads_no_grpc() -> None:
    program = "import sys, cmamil_sdk.serving.worker\nassert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_types_of_the_answer_are_public() -> None:
    from cmamil_sdk import client as module

    exported: list[Any] = [getattr(module, name) for name in module.__all__]
    assert all(isinstance(each, type) for each in exported)


@pytest.mark.parametrize("uri", ["a.svs", "file:///slides/a.svs", f"upload:{'0' * 64}"])
def test_a_job_names_its_slide_as_it_was_asked_for(uri: str) -> None:
    request = prediction_pb2.PredictSlideRequest(slide=slide_source(uri))
    assert job_from(prediction_pb2.PredictionJob(request=request, state=1)).slide == uri
