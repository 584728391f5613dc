"""Start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection

from cmamil_sdk import __version__
from cmamil_sdk.credentials import is_loopback, read_authorities, read_key_pair
from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.features.encode import decoding_device

from .access import Access
from .admission import Admission
from .calls import HEALTH
from .child import WORKER_COMMAND
from .config import ServerConfig
from .feature_cache import FeatureCache
from .health import Health
from .logs import Event
from .messages import WorkerSetup
from .models import LoadedModel, load_models
from .observation import Observation
from .pool import WorkerPool
from .service import SERVICE_NAMES, Services
from .tokens import TokenFile
from .trial import try_bundle

LOG = logging.getLogger(__name__)

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
        self._health = Health(SERVICE_NAMES)
        self._observation = Observation(config, self._services.metrics)
        self._grpc: grpc.aio.Server | None = None
        self._health_grpc: grpc.aio.Server | None = None
        self.health_port: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start and wait until ready. On an error nothing is left running.

        Raises:
            ConfigInvalid: the address, a certificate, a key, the tokens, the cache or the file of jobs
                cannot be used, or two bundles are the same.
            CmamilError: a bundle cannot be loaded, as :meth:`Bundle.load` says.
        """
        started_s = time.monotonic()
        LOG.info(Event("starting", version=__version__, bundles=len(self.config.bundles)))
        try:
            await self._services.jobs.open()
            self._services.cache = self._open_cache()
            await self._listen()
            tried = [await try_bundle(path, self.config) for path in self.config.bundles]
            models = await asyncio.to_thread(load_models, self.config, tried)
            pool = await self._start_workers(models)
            self._services.begin(models, pool)
            await self._update_health()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        for model, version, part, provider in self._services.now().runtimes:
            LOG.info(Event("model", model=f"{model}/{version}", part=part, provider=provider))
        took_s = round(time.monotonic() - started_s, 2)
        workers = _worker_count(self.config, models)
        LOG.info(Event("serving", models=len(models), workers=workers, took_s=took_s))

    async def stop(
        self, *, grace_s: float | None = None, hurry: asyncio.Event | None = None
    ) -> None:
        """Drain and stop; returns when the last process is gone.

        Health falls first; after ``drain_delay_s`` new work is refused, and work in flight has
        ``grace_s`` to finish, or until ``hurry`` is set. With ``grace_s`` given there is no delay.
        """
        await self._health.drain()
        predictor, pool = self._services.predictor, self._services.pool
        uploads = self._services.uploads
        if predictor is not None:
            admission, draining_s = predictor.admission, time.monotonic()
            now = self._services.now()
            LOG.info(Event("draining", active=now.active_slides, queued=now.queued_slides))
            if grace_s is None:
                await _pause(self.config.drain_delay_s, hurry)
                grace_s = self.config.grace_s
            admission.draining = uploads.draining = True
            await self._services.jobs.stop()
            idle = asyncio.create_task(self._idle(admission))
            done = await _first(idle, hurry, grace_s)
            idle.cancel()
            took_s = round(time.monotonic() - draining_s, 2)
            dropped = 0 if done else admission.present + uploads.arriving
            LOG.info(Event("drained", took_s=took_s, dropped=dropped))
            predictor.deadlines.stop_all()
        uploads.deadlines.stop_all()
        for server in (self._grpc, self._health_grpc):
            if server is not None:
                await server.stop(_LAST_WORDS_S)
        await self._observation.close()
        await uploads.close()
        if self._services.loader is not None:
            await self._services.loader.close()
        if pool is not None:
            await pool.stop()
        if predictor is not None:
            predictor.close()
        await self._services.jobs.close()

    async def _idle(self, admission: Admission) -> None:
        """Wait until nothing is at work or on its way; nothing new is taken meanwhile."""
        await admission.idle()
        await self._services.uploads.idle()

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
        await self._health.begin()
        config = self.config
        await self._services.uploads.open()
        credentials = _credentials(config)
        tokens = TokenFile(config.tokens) if config.tokens is not None else None
        observer = await self._observation.open(tokens)
        self._grpc = grpc.aio.server(
            interceptors=[observer, Access(tokens, config.max_calls_per_client)],
            options=_channel_options(config),
            maximum_concurrent_rpcs=_max_calls(config),
        )
        self._grpc.add_generic_rpc_handlers(self._services.handlers())
        self._health.add_to(self._grpc)
        if config.reflection:
            enable_server_reflection((*SERVICE_NAMES, HEALTH, REFLECTION), self._grpc)
        port = _add_port(self._grpc, config.host, config.port, credentials)
        if config.health_port is not None:
            self._health_grpc = grpc.aio.server(options=_channel_options(config))
            self._health.add_to(self._health_grpc)
            self.health_port = _add_port(
                self._health_grpc, config.health_host, config.health_port, None
            )
            await self._health_grpc.start()
        await self._grpc.start()
        self.port = port
        LOG.info(
            Event(
                "listening",
                address=_address(config.host, port),
                tls=credentials is not None,
                tokens=tokens is not None,
                health_port=self.health_port,
                metrics_port=self._observation.metrics_port,
            )
        )
        if credentials is None and not is_loopback(config.host):
            LOG.warning("%s is open to the network, without TLS", _address(config.host, port))

    async def _start_workers(self, models: list[LoadedModel]) -> WorkerPool:
        config = self.config
        setup = WorkerSetup(
            parent_pid=os.getpid(),
            models=tuple(model.spec() for model in models),
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
            quarantine_s=config.quarantine_s,
            command=self._worker_command,
            on_change=self._on_workers_change,
            on_batch=self._services.metrics.count_batch,
        )
        await pool.start()
        return pool

    def _open_cache(self) -> FeatureCache | None:
        if self.config.cache is None:
            return None
        metrics = self._services.metrics
        return FeatureCache(self.config.cache, self.config.cache_max_bytes, metrics.count_look_up)

    def _on_workers_change(self) -> None:
        task = asyncio.get_running_loop().create_task(self._update_health())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _update_health(self) -> None:
        await self._health.tell(ready=self._services.is_ready())


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
    gc.collect()
    gc.freeze()  # what is there now stays: to look through it again and again would hold up the loop
    assert server.port is not None
    on_ready(server.port)
    await stopping.wait()
    await server.stop(hurry=hurry)
    LOG.info(Event("stopped"))


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
    work: asyncio.Future[Any], event: asyncio.Event | None, timeout_s: float | None
) -> bool:
    """Wait for a task, an event or the time; True if the task ended (it goes on otherwise)."""
    waiters: list[asyncio.Future[Any]] = [work]
    if event is not None:
        waiters.append(asyncio.create_task(event.wait()))
    await asyncio.wait(waiters, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for waiter in waiters[1:]:
        waiter.cancel()
    return work.done()


async def _pause(seconds: float, hurry: asyncio.Event | None) -> None:
    """Wait so long, or until ``hurry`` is set."""
    wait = asyncio.create_task(asyncio.sleep(seconds))
    await _first(wait, hurry, None)
    wait.cancel()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _add_port(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    """Bind; returns the port, which is another one where ``port`` is 0."""
    address = _address(host, port)
    try:
        if credentials is not None:
            return int(server.add_secure_port(address, credentials))
        return int(server.add_insecure_port(address))
    except RuntimeError as problem:
        raise ConfigInvalid(
            f"The server cannot listen on {address}; choose another port or host, "
            "or stop what listens there."
        ) from problem


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
    age: list[tuple[str, int]] = []
    if config.connection_age_s is not None:
        age = [
            ("grpc.max_connection_age_ms", round(1000 * config.connection_age_s)),
            # The calls that are on it then have all the time that calls have.
            ("grpc.max_connection_age_grace_ms", round(1000 * config.max_deadline_s)),
        ]
    return [
        *age,
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # Near this limit gRPC refuses streams as if nobody answered (UNAVAILABLE): the limit on calls,
        # which answers RESOURCE_EXHAUSTED, has to be met long before.
        ("grpc.max_concurrent_streams", 4 * _max_calls(config)),
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
