"""What is counted, that the page and the method say the same of it, and who may read the page."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cmamil_sdk.client import Client
from cmamil_sdk.errors import ConfigInvalid, DeadlineExceeded, SlideNotFound, TokenInvalid
from cmamil_sdk.serving import metrics_port as metrics_port_module
from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server, background_server

from .certificates import issue
from .listening import listening_server
from .waiting import wait_until

STREAM = "cmamil.v1.SlidePredictionService/StreamPredictSlide"
TILES = 52  # of a.svs, over three scales


class Page:
    """The page of metrics as it stands."""

    def __init__(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.text = answer.read().decode("utf-8")
        connection.close()
        self.samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        return sum(
            value
            for found, given, value in self.samples
            if found == name and labels.items() <= given.items()
        )


@pytest.fixture(scope="module")
def measured(
    config: ServerConfig, slides_root: Path, odd_worker: tuple[str, ...]
) -> Iterator[Server]:
    for name in ("slow-measured.svs", "poison-measured.svs"):
        shutil.copy(slides_root / "a.svs", slides_root / name)
    settings = config.model_copy(update={"workers": 1, "metrics_port": 0})
    with background_server(settings, worker_command=odd_worker) as server:
        yield server


def metrics_port(server: Server) -> int:
    port = server._observation.metrics_port
    assert port is not None
    return port


def test_what_a_server_does_is_counted(measured: Server) -> None:
    port = metrics_port(measured)
    with Client(f"127.0.0.1:{measured.port}", timeout_s=60.0) as client:
        before = Page(port)
        prediction = client.predict("a.svs")
        with pytest.raises(SlideNotFound):
            client.predict("absent.svs")
        with pytest.raises(DeadlineExceeded):
            client.predict("slow-measured.svs", timeout_s=0.3)
        wait_until(lambda: Page(port).value("cmamil_cancelled_total") == 1)
        wait_until(lambda: client.server_info().workers[0].state == "idle")
        page, stats = Page(port), client.server_stats()

    for code, model in (("OK", "tiny"), ("NOT_FOUND", "tiny"), ("DEADLINE_EXCEEDED", "tiny")):
        labels = {"rpc": STREAM, "model": model, "version": "1", "code": code}
        assert page.value("cmamil_requests_total", **labels) == 1, code
    assert page.value("cmamil_request_duration_seconds_count", rpc=STREAM) == 3
    assert page.value("cmamil_queue_wait_seconds_count") == 1
    for stage in ("open", "tissue", "decode", "encode", "aggregate"):
        assert page.value("cmamil_stage_duration_seconds_count", stage=stage) == 1
        seconds = page.value("cmamil_stage_duration_seconds_sum", stage=stage)
        assert seconds == pytest.approx(prediction.seconds[stage], abs=1e-6)
    tiles = page.value("cmamil_tiles_total", result="ok")
    assert tiles >= TILES and page.value("cmamil_batch_size_sum") == tiles
    assert page.value("cmamil_tiles_total", result="failed") == 0
    left_out = page.value("cmamil_tiles_total", result="background")
    assert left_out == 2 * prediction.quality.tiles_background > 0  # two slides, which are alike
    assert page.value("cmamil_cancelled_total", stage="tiles") == 1
    assert page.value("cmamil_inflight_slides") == page.value("cmamil_queue_depth") == 0
    assert {
        labels["queue"] for name, labels, _ in page.samples if name == "cmamil_queue_depth"
    } == {
        "slides",
        "batches",
    }
    assert page.value("process_resident_memory_bytes") > 1e6
    for part in ("encoder", "aggregator"):
        assert before.value("cmamil_runtime_info", part=part, model="tiny", version="1") == 1
    assert ".svs" not in page.text and "absent" not in page.text

    assert {(c.code, c.count) for c in stats.calls if c.rpc == STREAM and c.model == "tiny/1"} == {
        ("OK", 1), ("NOT_FOUND", 1), ("DEADLINE_EXCEEDED", 1),
    }  # fmt: skip
    assert stats.rpcs[STREAM].count == 3 and stats.rpcs[STREAM].total_s >= 0.3
    assert set(stats.stages) == {"queued", "open", "tissue", "decode", "encode", "aggregate"}
    assert stats.stages["decode"].total_s == pytest.approx(prediction.seconds["decode"], abs=1e-6)
    assert (stats.tiles_ok, stats.tiles_failed) == (tiles, 0)
    assert stats.batches == page.value("cmamil_batch_size_count") and stats.cancelled == {
        "tiles": 1
    }
    assert (stats.active_slides, stats.queued_slides, stats.queued_batches) == (0, 0, 0)
    assert stats.worker_restarts == 0 and stats.uptime_s > 0


def test_restarts_are_counted_and_logged(
    measured: Server, caplog: pytest.LogCaptureFixture
) -> None:
    port, pool = metrics_port(measured), measured._services.pool
    assert pool is not None
    child = pool.slots[0].child
    assert child is not None and child.pid is not None
    with caplog.at_level("INFO", logger="cmamil_sdk"):
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: "worker_ready" in caplog.text)
        wait_until(lambda: "worker_died" in caplog.text)
    assert Page(port).value("cmamil_decode_worker_restarts_total") == 1
    assert f"worker_died worker=0 pid={child.pid} exit_status=-9" in caplog.text
    assert "worker_ready worker=0 restarts=1" in caplog.text


def ask(port: int, *lines: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Status and head of the answer to a request."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain as connection,
    ):
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    status = int(head.split()[1]) if head else 0
    assert (status == 200 and not lines[0].startswith("HEAD")) == bool(body)
    return status, head


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /metrics HTTP/1.1", 200),
        ("GET /metrics?name=x HTTP/1.0", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("POST /metrics HTTP/1.1", 405),
        ("GET / HTTP/1.1", 404),
        ("GET /../metrics HTTP/1.1", 404),
        ("GET /metrics", 400),
        ("GET /metrics FTP/1.1", 400),
        ("", 400),
        ("\x00\xff", 400),
    ],
)
def test_one_page_and_nothing_else(measured: Server, line: str, status: int) -> None:
    assert ask(metrics_port(measured), line, "Host: localhost")[0] == status


def test_long_heads_and_silence_end_the_connection(
    measured: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = metrics_port(measured)
    monkeypatch.setattr(metrics_port_module, "_PATIENCE_S", 0.3)
    assert ask(port, "GET /metrics HTTP/1.1", "X: " + "x" * 20_000)[0] == 0
    assert ask(port, "GET /metrics HTTP/1.1", *(f"X{n}: y" for n in range(200)))[0] == 400
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert connection.recv(10) == b""


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    path.touch(mode=0o600)
    path.write_text(
        "".join(
            f"{name} {role} {hashlib.sha256(name.encode()).hexdigest()}\n"
            for name, role in (("grafana", "metrics"), ("clinic", "predict"), ("root", "admin"))
        )
    )
    return path


def test_readers_need_the_role_where_there_are_tokens(
    config: ServerConfig, token_file: Path
) -> None:
    settings = config.model_copy(update={"tokens": token_file, "metrics_port": 0})
    get = "GET /metrics HTTP/1.1"
    with listening_server(settings) as server:
        port = metrics_port(server)
        for authorization, status in {
            "Bearer grafana": 200,
            "bearer grafana": 200,
            "Bearer clinic": 403,
            "Bearer root": 403,
            "Bearer unknown": 401,
            "Basic grafana": 401,
            "grafana": 401,
        }.items():
            assert ask(port, get, f"Authorization: {authorization}")[0] == status, authorization
        status, head = ask(port, get)
        assert status == 401 and "WWW-Authenticate: Bearer" in head
        both = ("Authorization: Bearer unknown", "Authorization: Bearer grafana")
        assert ask(port, get, *both)[0] == 401
        with Client(f"127.0.0.1:{server.port}") as client, pytest.raises(TokenInvalid):
            client.models()
        # Whoever has no token may call any name: it must not make a series of its own.
        metrics = server._services.metrics
        wait_until(lambda: list(metrics.calls()) == [("any", "", "UNAUTHENTICATED", 1)])


def test_the_page_speaks_tls_where_the_server_does(config: ServerConfig, tmp_path: Path) -> None:
    authority = issue(tmp_path, "authority", authority=True)
    server, reader = issue(tmp_path, "server", authority), issue(tmp_path, "reader", authority)
    settings: dict[str, Any] = {
        "metrics_port": 0,
        "tls_certificate": server.certificate,
        "tls_key": server.key,
        "tls_client_ca": authority.certificate,
    }
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    with listening_server(config.model_copy(update=settings)) as running:
        port = metrics_port(running)
        with contextlib.suppress(ssl.SSLError, ConnectionError):  # or it is merely ended
            assert ask(port, "GET /metrics HTTP/1.1", context=trusting) == (0, "")
        trusting.load_cert_chain(reader.certificate, reader.key)
        assert ask(port, "GET /metrics HTTP/1.1", context=trusting)[0] == 200


def test_a_port_that_is_taken_and_an_open_one_are_refused(config: ServerConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = config.model_copy(update={"metrics_port": taken.getsockname()[1]})
        with (
            pytest.raises(ConfigInvalid, match="metrics cannot be served"),
            listening_server(settings),
        ):
            pass
    document = {**config.model_dump(), "metrics_host": "0.0.0.0"}
    assert ServerConfig.parse(document).metrics_port is None
    with pytest.raises(ConfigInvalid, match=r"whoever reaches 0\.0\.0\.0"):
        ServerConfig.parse({**document, "metrics_port": 9090})
    assert ServerConfig.parse({**document, "metrics_port": 9090, "insecure": True})
