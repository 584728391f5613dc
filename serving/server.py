"""Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from cmamil_sdk.credentials import is_loopback, read_authorities, read_key_pair
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.features.encode import decoding_device
from cmamil_sdk.wording import counted

from .access import Access
from .child import WORKER_COMMAND
from .config import ServerConfig
from .messages import WorkerSetup
from .models import LoadedModel, load_models
from .pool import WorkerPool
from .predictor import Predictor
from .service import SERVICE_NAMES, Services
from .tokens import TokenFile

LOG = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SPARE_CALLS = 64  # health, models, server info beside the slides
_METADATA_BYTES = 8192  # of the headers of one call
_LAST_WORDS_S = 1.0  # for statuses on their way when the server stops


class Server:
    """One server on one event loop.

    ``start`` returns when the server is ready: its bundles verified, its workers up, its health
    SERVING. Health and server info answer earlier, from the moment that :attr:`port` is set.
    """

    def __init__(
        self, config: ServerConfig, *, worker_command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        """``worker_command`` starts a worker; its socket's descriptor is added as an argument."""
        self.config = config
        self.port: int | None = None
        self._worker_command = worker_command
        self._services = Services(config)
        self._health = health_aio.HealthServicer()
        self._grpc: grpc.aio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start and wait until ready. On an error nothing is left running.

        Raises:
            ConfigInvalid: the address, a certificate, a key or the tokens cannot be used, or two
                bundles are the same.
            CmamilError: a bundle cannot be loaded, as :meth:`Bundle.load` says.
        """
        try:
            await self._listen()
            models = await asyncio.to_thread(load_models, self.config)
            await self._start_workers(models)
            self._services.models.fill(models)
            await self._update_health()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        LOG.info(
            "serving %s with %s",
            counted(len(models), "model"),
            counted(_worker_count(self.config, models), "worker"),
        )

    async def stop(
        self, *, grace_s: float | None = None, hurry: asyncio.Event | None = None
    ) -> None:
        """Drain and stop; returns when the last process is gone.

        Health falls first, new work is refused, work in flight has ``grace_s`` (default: the
        configuration's) to finish, or until ``hurry`` is set.
        """
        await self._health.enter_graceful_shutdown()
        predictor, pool = self._services.predictor, self._services.pool
        if predictor is not None:
            predictor.admission.draining = True
            grace = self.config.grace_s if grace_s is None else grace_s
            idle = asyncio.create_task(predictor.admission.idle())
            await _first(idle, hurry, grace)
            idle.cancel()
            predictor.deadlines.stop_all()
        if self._grpc is not None:
            await self._grpc.stop(_LAST_WORDS_S)
        if pool is not None:
            await pool.stop()
        if predictor is not None:
            predictor.close()

    async def __aenter__(self) -> Self:
        """The started server."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop."""
        await self.stop()

    async def _listen(self) -> None:
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, _NOT_SERVING)
        config = self.config
        credentials = _credentials(config)
        tokens = TokenFile(config.tokens) if config.tokens is not None else None
        self._grpc = grpc.aio.server(
            interceptors=[Access(tokens, config.max_calls_per_client)],
            options=_channel_options(config),
            maximum_concurrent_rpcs=_max_calls(config),
        )
        self._grpc.add_generic_rpc_handlers(self._services.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.port}"
        try:
            if credentials is not None:
                port = self._grpc.add_secure_port(address, credentials)
            else:
                port = self._grpc.add_insecure_port(address)
        except RuntimeError as problem:
            raise ConfigInvalid(
                f"The server cannot listen on {address}; choose another port or host, "
                "or stop what listens there."
            ) from problem
        if credentials is None and not is_loopback(config.host):
            LOG.warning("%s is open to the network, without TLS", address)
        await self._grpc.start()
        self.port = port

    async def _start_workers(self, models: list[LoadedModel]) -> None:
        config = self.config
        setup = WorkerSetup(
            parent_pid=os.getpid(),
            encoders=tuple(model.encoder_spec() for model in models),
            reader=config.reader,
            memory_mib=config.worker_memory_mib,
            open_slides=config.open_slides,
            max_tiles=config.max_tiles,
            max_slide_pixels=config.max_slide_pixels,
            max_image_pixels=config.max_image_pixels,
            max_levels=config.max_levels,
        )
        pool = WorkerPool(
            setup,
            workers=_worker_count(config, models),
            task_timeout_s=config.task_timeout_s,
            command=self._worker_command,
            on_change=self._on_workers_change,
        )
        self._services.engines = await pool.start()
        self._services.pool = pool
        self._services.predictor = Predictor(config, pool)

    def _on_workers_change(self) -> None:
        task = asyncio.get_running_loop().create_task(self._update_health())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _update_health(self) -> None:
        pool = self._services.pool
        ready = pool is not None and pool.ready_workers and self._services.models.loaded()
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, _SERVING if ready else _NOT_SERVING)


def serve(config: ServerConfig, *, on_ready: Callable[[int], None] = lambda _port: None) -> None:
    """Serve until SIGTERM or SIGINT; call it from the main thread.

    ``on_ready`` is called with the port once the server is ready. SIGTERM drains, a second one stops
    at once, as SIGINT does.

    Raises:
        CmamilError: as :meth:`Server.start`.
    """
    asyncio.run(_serve(config, on_ready))


async def _serve(config: ServerConfig, on_ready: Callable[[int], None]) -> None:
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def on_terminate() -> None:
        if stopping.is_set():
            hurry.set()
        stopping.set()

    def on_interrupt() -> None:
        hurry.set()
        stopping.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_terminate)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    server = Server(config)
    starting = asyncio.create_task(server.start())
    if not await _first(starting, stopping, None):
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    assert server.port is not None
    on_ready(server.port)
    await stopping.wait()
    LOG.info("stopping")
    await server.stop(hurry=hurry)


@contextmanager
def background_server(
    config: ServerConfig, *, worker_command: Sequence[str] = WORKER_COMMAND
) -> Iterator[Server]:
    """A server on a thread of its own, for synchronous programs; ready when the block begins.

    Raises:
        CmamilError: as :meth:`Server.start`.
    """
    server = Server(config, worker_command=worker_command)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="cmamil-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _first(
    work: asyncio.Task[None], event: asyncio.Event | None, timeout_s: float | None
) -> bool:
    """Wait for a task, an event or the time; True if the task ended (it goes on otherwise)."""
    waiters: list[asyncio.Task[Any]] = [work]
    if event is not None:
        waiters.append(asyncio.create_task(event.wait()))
    await asyncio.wait(waiters, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters[1:]:
        waiter.cancel()
    return work.done()


def _worker_count(config: ServerConfig, models: Sequence[LoadedModel]) -> int:
    """As configured; where it is not, one process alone decodes and encodes on a GPU."""
    places = {decoding_device(config.reader, model.bundle.encoder_info) for model in models}
    on_gpu = bool(places - {"cpu"})
    return 1 if on_gpu and "workers" not in config.model_fields_set else config.workers


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """TLS as configured; None without."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    pair = read_key_pair(config.tls_certificate, config.tls_key, error=ConfigInvalid)
    authorities = None
    if config.tls_client_ca is not None:
        authorities = read_authorities(config.tls_client_ca, error=ConfigInvalid)
    return grpc.ssl_server_credentials(
        [pair], root_certificates=authorities, require_client_auth=authorities is not None
    )


def _max_calls(config: ServerConfig) -> int:
    return config.max_active_slides + config.max_queued + _SPARE_CALLS


def _channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", _max_calls(config)),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        # Otherwise a second server could bind the same port without notice.
        ("grpc.so_reuseport", 0),
    ]


__all__ = ["Server", "background_server", "serve"]
