"""Prediction jobs through the wire."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cmamil_sdk._proto.cmamil.v1 import prediction_pb2, slide_pb2
from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import (
    ConfigInvalid,
    FieldInvalid,
    JobFinished,
    JobNotFound,
    JobsDisabled,
    JobsUnavailable,
    QueueFull,
    RequestIdReused,
    SlideNotFound,
)
from cmamil_sdk.predict import ProgressEvent
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.jobs import runner
from cmamil_sdk.serving.jobs.store import JobStore
from cmamil_sdk.serving.server import Server, background_server

from .waiting import wait_until

SERVICE = "/cmamil.v1.SlidePredictionService"
SLOW = "slow-big.svs"
AT_ONCE_S = 0.5


@pytest.fixture(scope="module")
def jobs_config(
    config: ServerConfig,
    slides_root: Path,
    big_slide: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> ServerConfig:
    """One job at a time; :data:`SLOW` takes about two seconds."""
    shutil.copy(big_slide, slides_root / SLOW)
    return config.model_copy(
        update={
            "jobs_file": tmp_path_factory.mktemp("jobs") / "jobs.sqlite",
            "max_active_jobs": 1,
            "max_waiting_jobs": 3,
            "heartbeat_s": 0.3,
        }
    )


@contextmanager
def serving(config: ServerConfig, worker: tuple[str, ...]) -> Iterator[tuple[Server, Client]]:
    with (
        background_server(config, worker_command=worker) as server,
        Client(f"127.0.0.1:{server.port}", timeout_s=60.0) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def served(
    jobs_config: ServerConfig, odd_worker: tuple[str, ...]
) -> Iterator[tuple[Server, Client]]:
    with serving(jobs_config, odd_worker) as both:
        yield both


@pytest.fixture
def client(served: tuple[Server, Client]) -> Iterator[Client]:
    """Its jobs are gone before the next test begins."""
    yield served[1]
    for job in served[1].jobs():
        served[1].delete_job(job.name)
    wait_until(lambda: not served[1].server_info().active_slides)


def states(client: Client) -> list[str]:
    return [job.state for job in client.jobs()]


def test_a_job_is_the_prediction(client: Client) -> None:
    expected = client.predict("a.svs", attention=True)
    made = client.create_job("a.svs", attention=True, model="tiny")
    assert made.slide == "a.svs" and made.model == "models/tiny/versions/1"
    seen: list[ProgressEvent] = []
    done = client.watch_job(made.name, on_progress=seen.append)
    assert done.state == "SUCCEEDED" and done.has_ended and done.error is None
    assert done.prediction is not None
    assert replace(done.prediction, seconds={}, maps=()) == replace(expected, seconds={}, maps=())
    for one, other in zip(done.prediction.maps, expected.maps, strict=True):
        assert (one.attention == other.attention).all()
    assert seen and [e.done for e in seen] == sorted(e.done for e in seen)
    assert made.created <= done.started <= done.ended < done.expires  # type: ignore[operator]
    assert client.watch_job(made.name).to_json() == client.job(made.name).to_json()
    (listed,) = client.jobs()
    assert listed.prediction is None and replace(done, prediction=None) == listed


def test_a_job_may_fail(client: Client) -> None:
    done = client.watch_job(client.create_job("absent.svs").name)
    assert done.state == "FAILED" and done.prediction is None
    assert isinstance(done.error, SlideNotFound) and "absent.svs" in str(done.error)
    assert done.to_json()["error"]["reason"] == "SLIDE_NOT_FOUND"
    with pytest.raises(JobFinished, match="FAILED"):
        client.cancel_job(done.name)


def test_the_other_client_has_the_same(client: Client) -> None:
    async def ask() -> None:
        async with AsyncClient(client.server, timeout_s=60.0) as asking:
            made = await asking.create_job("a.svs")
            done = await asking.watch_job(made.name, on_progress=lambda _: None)
            assert done == await asking.job(made.name)
            assert [job.name async for job in asking.jobs(state="succeeded")] == [made.name]
            with pytest.raises(JobFinished):
                await asking.cancel_job(made.name)
            await asking.delete_job(made.name)
            with pytest.raises(JobNotFound):
                await asking.watch_job(made.name)

    asyncio.run(ask())


def test_a_job_that_waits_or_runs_is_cancelled_at_once(client: Client) -> None:
    running, waiting = client.create_job(SLOW).name, client.create_job(SLOW).name
    wait_until(lambda: (p := client.job(running).progress) is not None and p.stage == "encode")
    assert (client.job(waiting).state, client.job(waiting).queue_position) == ("PENDING", 0)
    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(client.watch_job, name) for name in (waiting, running)]
        for name, end in zip((waiting, running), ends, strict=True):
            begun_s = time.monotonic()
            assert client.cancel_job(name).state == "CANCELLED"
            assert end.result().state == "CANCELLED"
            assert time.monotonic() - begun_s < AT_ONCE_S
    wait_until(lambda: not client.server_info().active_slides, AT_ONCE_S)
    assert client.predict("a.svs").label


def test_deleting_ends_a_job(client: Client) -> None:
    running = client.create_job(SLOW).name
    wait_until(lambda: client.job(running).state == "RUNNING")
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(client.watch_job, running)
        client.delete_job(running)
        with pytest.raises(JobNotFound):
            watching.result(timeout=5)
    wait_until(lambda: not client.server_info().active_slides)
    assert states(client) == []


def test_jobs_wait_in_a_bounded_line(client: Client, raw_call: Callable[..., Any]) -> None:
    made = [client.create_job(SLOW).name]
    wait_until(lambda: client.job(made[0]).state == "RUNNING")
    made += [client.create_job(SLOW).name for _ in range(3)]
    with pytest.raises(QueueFull, match="3 jobs that wait"):
        client.create_job("a.svs")
    request = prediction_pb2.PredictSlideRequest(slide=slide_pb2.SlideSource(uri="a.svs"))
    message = prediction_pb2.CreatePredictionJobRequest(request=request).SerializeToString()
    _, reason, details = raw_call(client.server, f"{SERVICE}/CreatePredictionJob", message)
    assert reason == "QUEUE_FULL" and details[1].retry_delay.seconds >= 1
    assert [job.queue_position for job in client.jobs()] == [2, 1, 0, 0]
    assert [job.name for job in client.jobs(state="PENDING")] == made[:0:-1]
    begun_s = time.monotonic()
    assert client.predict("a.svs").label  # is not behind the jobs that wait
    assert client.job(made[-1]).state == "PENDING" and time.monotonic() - begun_s < 10


def test_pages(client: Client, raw_call: Callable[..., Any]) -> None:
    made = []
    for _ in range(5):
        made.append(client.create_job("absent.svs").name)
        client.watch_job(made[-1])
    assert [job.name for job in client.jobs()] == made[::-1]
    found: list[str] = []
    token, pages = "", 0
    while pages == 0 or token:
        asked = prediction_pb2.ListPredictionJobsRequest(page_size=2, page_token=token, state=4)
        data = raw_call(client.server, f"{SERVICE}/ListPredictionJobs", asked.SerializeToString())
        page = prediction_pb2.ListPredictionJobsResponse.FromString(data)
        found += [job.name for job in page.jobs]
        token, pages = page.next_page_token, pages + 1
    assert (found, pages) == (made[::-1], 3)
    assert list(client.jobs(state="CANCELLED")) == []
    with pytest.raises(FieldInvalid, match="no state of jobs"):
        list(client.jobs(state="DONE"))


@pytest.mark.parametrize(
    ("method", "message", "field"),
    [
        ("GetPredictionJob", prediction_pb2.GetPredictionJobRequest(name="x"), "name"),
        ("CancelPredictionJob", prediction_pb2.CancelPredictionJobRequest(name="jobs/x"), "name"),
        ("DeletePredictionJob", prediction_pb2.DeletePredictionJobRequest(), "name"),
        (
            "ListPredictionJobs",
            prediction_pb2.ListPredictionJobsRequest(page_size=-1),
            "page_size",
        ),
        (
            "ListPredictionJobs",
            prediction_pb2.ListPredictionJobsRequest(page_token="9" * 30),
            "page_token",
        ),
        ("ListPredictionJobs", prediction_pb2.ListPredictionJobsRequest(state=99), "state"),
        ("CreatePredictionJob", prediction_pb2.CreatePredictionJobRequest(), "slide.uri"),
    ],
    ids=str,
)
def test_wrong_fields_are_named(
    client: Client, raw_call: Callable[..., Any], method: str, message: Any, field: str
) -> None:
    data = message.SerializeToString()
    _, reason, details = raw_call(client.server, f"{SERVICE}/{method}", data)
    assert reason == "FIELD_INVALID"
    assert [violation.field for violation in details[1].field_violations] == [field]


def test_unknown_jobs_are_not_found(client: Client) -> None:
    name = f"jobs/{uuid.uuid4()}"
    for ask in (client.job, client.watch_job, client.cancel_job, client.delete_job):
        with pytest.raises(JobNotFound):
            ask(name)


def test_a_request_id_makes_one_job(client: Client) -> None:
    identity = str(uuid.uuid4())
    made = client.create_job("a.svs", request_id=identity)
    assert client.create_job("a.svs", request_id=identity.upper()).name == made.name
    assert client.watch_job(made.name).request_id == identity
    assert client.create_job("a.svs", request_id=identity).name == made.name
    with pytest.raises(RequestIdReused):
        client.create_job("a.svs", request_id=identity, top_k=3)
    client.delete_job(made.name)
    assert client.create_job("a.svs", request_id=identity, top_k=3).name != made.name


def test_a_watch_is_kept_alive_and_numbered(client: Client) -> None:
    client.create_job(SLOW)
    name = client.create_job("a.svs").name  # waits
    request = prediction_pb2.WatchPredictionJobRequest(name=name).SerializeToString()
    with grpc.insecure_channel(client.server) as channel:
        begun_s = time.monotonic()
        call = channel.unary_stream(f"{SERVICE}/WatchPredictionJob")(request, timeout=30)
        events = [
            prediction_pb2.WatchPredictionJobResponse.FromString(next(call)) for _ in range(4)
        ]
        assert time.monotonic() - begun_s > 3 * 0.3  # heartbeats
        client.cancel_job(name)
        *_, last = map(prediction_pb2.WatchPredictionJobResponse.FromString, call)
    assert [event.sequence for event in events] == list(range(4))
    assert last.job.state == prediction_pb2.PredictionJob.STATE_CANCELLED


def test_watchers_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmamil_sdk.serving.jobs.service._MAX_WATCHERS", 0)
    with pytest.raises(QueueFull, match="GetPredictionJob"):
        client.watch_job(client.create_job("a.svs").name)


def test_a_full_disk_delays_results_and_refuses_new_jobs(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_S", 0.1)
    full = True

    def finish(store: JobStore, *args: Any, **kwargs: Any) -> bool:
        if full:
            raise JobsUnavailable("database or disk is full")
        return really(store, *args, **kwargs)

    def add(*_: Any) -> None:
        raise JobsUnavailable("database or disk is full")

    really = JobStore.finish
    monkeypatch.setattr(JobStore, "finish", finish)
    name = client.create_job("a.svs").name
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "add", add)
        with pytest.raises(JobsUnavailable, match="full"), Client(client.server) as impatient:
            impatient.create_job("a.svs")
    wait_until(lambda: not client.server_info().active_slides)
    assert client.job(name).state == "RUNNING"
    full = False
    assert client.watch_job(name).state == "SUCCEEDED"


def test_without_a_file_there_are_no_jobs(address: str) -> None:
    with Client(address) as client:
        for ask in (client.create_job, lambda _: list(client.jobs())):
            with pytest.raises(JobsDisabled, match="jobs_file"):
                ask("a.svs")


def test_a_second_server_is_refused_the_file(
    served: tuple[Server, Client], jobs_config: ServerConfig
) -> None:
    with (
        pytest.raises(ConfigInvalid, match="another server at work"),
        background_server(jobs_config),
    ):
        pass
    assert served[1].health() == "SERVING"


def test_metrics_and_log_know_the_jobs(
    served: tuple[Server, Client], client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    registry = served[0]._services.metrics.registry

    def ended(state: str) -> float:
        return registry.get_sample_value("cmamil_jobs_ended_total", {"state": state}) or 0.0

    before = {state: ended(state) for state in ("succeeded", "failed", "cancelled")}
    with caplog.at_level("INFO", logger="cmamil_sdk"):
        good, bad = (client.create_job(name).name for name in ("a.svs", "absent.svs"))
        slow = client.create_job(SLOW).name
        for name in (good, bad):
            client.watch_job(name)
        wait_until(lambda: client.job(slow).state == "RUNNING")
        assert registry.get_sample_value("cmamil_jobs", {"state": "running"}) == 1.0
        client.cancel_job(slow)
        wait_until(lambda: ended("cancelled") > before["cancelled"])
    assert all(ended(state) == count + 1 for state, count in before.items())
    lines = {
        r.msg.values["job"]: r.msg.values
        for r in caplog.records
        if getattr(r.msg, "name", "") == "job"
    }
    assert [lines[name]["state"] for name in (good, bad, slow)] == list(before)
    assert lines[bad]["reason"] == "SLIDE_NOT_FOUND" and lines[good]["seconds"]["encode"] > 0
    assert lines[good]["features"] == "computed"
    assert ".svs" not in str(lines)


def test_draining_leaves_the_jobs_to_the_next_server(
    jobs_config: ServerConfig, odd_worker: tuple[str, ...], tmp_path: Path
) -> None:
    config = jobs_config.model_copy(
        update={"jobs_file": tmp_path / "jobs.sqlite", "keep_jobs_s": 3.0, "workers": 1}
    )
    with ThreadPoolExecutor(1) as threads:
        with background_server(config, worker_command=odd_worker) as server:
            port = server.port
            client = Client(f"127.0.0.1:{port}", timeout_s=60.0)
            made = [client.create_job(uri).name for uri in (SLOW, "a.svs")]
            watching = threads.submit(client.watch_job, made[0])
            wait_until(lambda: client.job(made[0]).progress is not None)
        config = config.model_copy(update={"port": port})
        with client, background_server(config, worker_command=odd_worker):
            # The client has gone on asking.
            done = [watching.result(timeout=60), client.watch_job(made[1])]
            assert [job.state for job in done] == ["SUCCEEDED"] * 2
            assert [job.name for job in done] == made
            wait_until(lambda: not list(client.jobs()))  # they have expired
