"""Workers that die, hang or lie harm their own slide at most."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.client import Client
from cmamil_sdk.errors import DecoderCrashed, QueueFull, SlideTooLarge, UnexpectedError
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server

from .waiting import wait_until


@pytest.fixture(scope="module")
def odd_config(config: ServerConfig, slides_root: Path) -> ServerConfig:
    for name in ("poison.svs", "hang.svs", "slow.svs", "evil.svs", "bug.svs", "memory.svs"):
        shutil.copy(slides_root / "a.svs", slides_root / name)
    return config.model_copy(update={"task_timeout_s": 5.0, "max_active_slides": 3})


@pytest.fixture
def odd_server(odd_config: ServerConfig, odd_worker: tuple[str, ...]) -> Iterator[Server]:
    with background_server(odd_config, worker_command=odd_worker) as server:
        yield server


def pids(server: Server) -> list[int]:
    pool = server._services.pool
    assert pool is not None
    return [slot.child.pid for slot in pool.slots if slot.child and slot.child.pid]


def is_on_a_first_try(server: Server, number: int) -> bool:
    """Whether a worker has a task that has not ended another worker yet."""
    pool = server._services.pool
    assert pool is not None
    current = pool.slots[number].current
    return bool(current) and not any(item.alone for item in current)


def test_killed_workers_lose_no_request(config: ServerConfig) -> None:
    with (
        background_server(config) as server,
        ThreadPoolExecutor(4) as threads,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        expected = client.predict("a.svs").probabilities
        work = [threads.submit(client.predict, "a.svs", bypass_cache=True) for _ in range(6)]
        for number in (0, 1):
            wait_until(lambda n=number: is_on_a_first_try(server, n))
            os.kill(pids(server)[number], signal.SIGKILL)
            wait_until(lambda n=number: client.server_info().workers[n].restarts == 1)
            wait_until(lambda n=number: client.server_info().workers[n].state != "starting")
        assert all(each.result().probabilities == expected for each in work)
        assert client.health() == "SERVING"


def test_workers_leave_signals_to_the_server(server: Server) -> None:
    before = pids(server)
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    with Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client:
        assert client.predict("a.svs").label
    assert pids(server) == before


def test_workers_go_behind_the_server(server: Server) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids(server)} == {min(own + 5, 19)}


def test_a_slide_that_ends_its_workers_fails_alone(odd_server: Server) -> None:
    with (
        ThreadPoolExecutor(4) as threads,
        Client(f"127.0.0.1:{odd_server.port}", timeout_s=60.0) as client,
    ):
        good = [threads.submit(client.predict, "a.svs") for _ in range(2)]
        with pytest.raises(DecoderCrashed, match=r"poison\.svs ended two worker processes;"):
            client.predict("poison.svs")
        assert len({each.result().label for each in good}) == 1
        wait_until(lambda: client.health() == "SERVING")
        assert client.predict("a.svs").tiles_failed == 0
        restarts = sum(w.restarts for w in client.server_info().workers)
        assert restarts >= 2
        with pytest.raises(DecoderCrashed, match=r"poison\.svs .* is not read again for \d+ s"):
            client.predict("poison.svs")
        assert sum(w.restarts for w in client.server_info().workers) == restarts


def test_a_worker_that_hangs_is_ended(odd_server: Server) -> None:
    pool = odd_server._services.pool
    assert pool is not None
    with Client(f"127.0.0.1:{odd_server.port}", timeout_s=60.0) as client:
        pool.task_timeout_s = 1.0
        with pytest.raises(DecoderCrashed):
            client.predict("hang.svs")
        pool.task_timeout_s = 20.0
        wait_until(lambda: client.health() == "SERVING")
        client.predict("a.svs")


def test_a_worker_cannot_make_the_server_run_code(odd_server: Server, slides_root: Path) -> None:
    with (
        Client(f"127.0.0.1:{odd_server.port}", timeout_s=60.0) as client,
        pytest.raises(DecoderCrashed),
    ):
        client.predict("evil.svs")
    assert not (slides_root / "made-by-a-worker").exists()


def test_an_unforeseen_error_in_a_worker_is_typed_and_logged(
    odd_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(f"127.0.0.1:{odd_server.port}", timeout_s=60.0) as client:
        with pytest.raises(UnexpectedError, match=r"bug\.svs failed with RuntimeError"):
            client.predict("bug.svs")
        with pytest.raises(SlideTooLarge, match="memory"):
            client.predict("memory.svs")
        assert [worker.restarts for worker in client.server_info().workers] == [0, 0]
    assert "nobody foresaw this" in caplog.text


def test_overload_is_refused_at_once(
    odd_config: ServerConfig, odd_worker: tuple[str, ...], raw_call: Callable[..., Any]
) -> None:
    small = odd_config.model_copy(update={"max_active_slides": 1, "max_queued": 1})
    request = prediction_pb2.PredictSlideRequest(
        slide=slide_pb2.SlideSource(uri="slow.svs")
    ).SerializeToString()
    method = "/cmamil.v1.SlidePredictionService/PredictSlide"
    with background_server(small, worker_command=odd_worker) as server:
        address = f"127.0.0.1:{server.port}"
        with Client(address, timeout_s=60.0) as client, ThreadPoolExecutor(2) as threads:
            work = [threads.submit(client.predict, "slow.svs", bypass_cache=True) for _ in range(2)]
            wait_until(lambda: client.server_info().queued_slides == 1)
            for _ in range(4):
                code, reason, details = raw_call(address, method, request)
                assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
                assert details[1].retry_delay.seconds >= 1
            assert client.server_info().queued_slides == 1  # nobody waited for a place
            with pytest.raises(QueueFull):
                client.predict("a.svs")
            assert all(each.result().label for each in work)
            assert client.predict("a.svs").label


def test_health_is_answered_under_load(odd_server: Server) -> None:
    address = f"127.0.0.1:{odd_server.port}"
    with Client(address, timeout_s=60.0) as client, ThreadPoolExecutor(4) as threads:
        work = [threads.submit(client.predict, "slow.svs", bypass_cache=True) for _ in range(5)]
        answers = 0
        while not any(each.done() for each in work):
            assert client.health() == "SERVING"
            answers += 1
        assert answers >= 5  # none of them waited for a batch
        assert all(each.result().label for each in work)


def test_vanishing_clients_leave_nothing_behind(odd_server: Server) -> None:
    address = f"127.0.0.1:{odd_server.port}"
    before = threading.active_count()
    for _ in range(20):
        channel = grpc.insecure_channel(address)
        request = prediction_pb2.StreamPredictSlideRequest(
            request=prediction_pb2.PredictSlideRequest(slide=slide_pb2.SlideSource(uri="slow.svs"))
        )
        channel.unary_stream("/cmamil.v1.SlidePredictionService/StreamPredictSlide")(
            request.SerializeToString()
        )
        channel.close()
    with Client(address, timeout_s=60.0) as client:
        wait_until(lambda: client.server_info().active_slides == 0)
        assert client.server_info().queued_slides == 0
        assert client.predict("a.svs").label
    assert threading.active_count() <= before + 4
