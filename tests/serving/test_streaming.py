"""Progress events: few, in order, then one result; a cancelled stream stops the work."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.predictor import Stage
from cmamil_sdk.serving.server import background_server
from cmamil_sdk.serving.streaming import ProgressFilter

_STREAM = "/cmamil.v1.SlidePredictionService/StreamPredictSlide"
STREAMED = "call rpc=cmamil.v1.SlidePredictionService/StreamPredictSlide "


def stream(channel: grpc.Channel, uri: str, timeout: float = 60.0) -> grpc.Call:
    request = prediction_pb2.PredictSlideRequest(slide=slide_pb2.SlideSource(uri=uri))
    method = channel.unary_stream(
        _STREAM,
        request_serializer=prediction_pb2.StreamPredictSlideRequest.SerializeToString,
        response_deserializer=prediction_pb2.StreamPredictSlideResponse.FromString,
    )
    return method(prediction_pb2.StreamPredictSlideRequest(request=request), timeout=timeout)


def test_filter_sends_steps_at_most_twice_a_second() -> None:
    progress = ProgressFilter(heartbeat_s=10.0)
    first = Stage("tiles", 0, 1000)
    assert progress.delay(first, 100.0) == 0.0
    progress.sent(first, 100.0)
    assert progress.delay(Stage("tiles", 500, 1000), 100.1) == pytest.approx(0.4)
    assert progress.delay(Stage("tiles", 9, 1000), 101.0) is None
    assert progress.delay(Stage("tiles", 10, 1000), 101.0) == 0.0
    assert progress.delay(Stage("aggregating", 9, 1000), 101.0) == 0.0
    assert progress.heartbeat(104.0) == pytest.approx(6.0)
    assert progress.heartbeat(111.0) == 0.0


def test_events_are_accepted_progress_and_one_result(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        started = time.monotonic()
        arrived = []
        for event in stream(channel, "a.svs"):
            arrived.append((time.monotonic() - started, event))
    events = [event for _, event in arrived]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted" and arrived[0][0] < 1.0
    assert events[0].accepted.model == "models/tiny/versions/1"
    assert kinds[-1] == "result" and kinds.count("result") == 1
    assert set(kinds[1:-1]) == {"progress"}
    assert [event.sequence for event in events] == list(range(len(events)))
    assert len({event.request_id for event in events}) == 1
    assert events[-1].result.request_id == events[0].request_id


def test_who_hangs_up_on_the_answer_has_been_answered(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="cmamil_sdk"), grpc.insecure_channel(address) as channel:
        for _ in range(5):
            call = stream(channel, "a.svs")
            for event in call:
                if event.WhichOneof("event") == "result":
                    call.cancel()
                    break
        with Client(address) as client:
            wait_until_idle(client)
    ends = [text for record in caplog.records if STREAMED in (text := record.getMessage())]
    assert len(ends) == 5 and all(" code=OK " in end for end in ends)


@pytest.fixture(scope="module")
def with_big_slide(
    slides_root: Path, big_slide: Path, config: ServerConfig, odd_worker: tuple[str, ...]
) -> Iterator[str]:
    """A server whose two workers take at least 0.4 s for each of the slide's 9 batches.

    However fast the machine, a prediction takes 1.8 s and can be cut short.
    """
    shutil.copy(big_slide, slides_root / "slow-big.svs")
    eager = config.model_copy(update={"heartbeat_s": 0.05})
    with background_server(eager, worker_command=odd_worker) as server:
        yield f"127.0.0.1:{server.port}"


def test_cancelling_a_stream_stops_its_decoding(with_big_slide: str) -> None:
    with grpc.insecure_channel(with_big_slide) as channel, Client(with_big_slide) as client:
        call = stream(channel, "slow-big.svs")
        total = 0
        for event in call:
            total = event.progress.total
            if event.progress.done > 0:
                break
        call.cancel()
        cancelled_at = client.server_info().tiles_decoded
        settled = wait_until_idle(client)
        time.sleep(0.5)
        assert client.server_info().tiles_decoded == settled
    batches_in_flight = 2 * 24
    assert settled <= cancelled_at + batches_in_flight < total


def wait_until_idle(client: Client) -> int:
    """Wait until nothing is at work; returns the tiles decoded so far."""
    until = time.monotonic() + 10.0
    while True:
        info = client.server_info()
        if info.active_slides == 0 and {worker.state for worker in info.workers} == {"idle"}:
            return info.tiles_decoded
        assert time.monotonic() < until, "the server is still at work"
        time.sleep(0.02)


def test_a_deadline_stops_the_work(with_big_slide: str) -> None:
    with grpc.insecure_channel(with_big_slide) as channel, Client(with_big_slide) as client:
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(channel, "slow-big.svs", timeout=1.0))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        settled = wait_until_idle(client)
        time.sleep(0.5)
        assert client.server_info().tiles_decoded == settled


def test_silence_is_broken_by_heartbeats(with_big_slide: str) -> None:
    with grpc.insecure_channel(with_big_slide) as channel:
        call = stream(channel, "slow-big.svs")
        progress = []
        for event in call:
            if event.WhichOneof("event") == "progress":
                progress.append(event.progress)
            if len(progress) == 12:
                break
        call.cancel()
    assert [p.done for p in progress] == sorted(p.done for p in progress)
    assert len({(p.stage, p.done) for p in progress}) < len(progress)
