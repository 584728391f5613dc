"""The port of a server without what is behind it: no bundle, no worker, up in milliseconds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from cmamil_sdk.serving.config import ServerConfig
from cmamil_sdk.serving.server import Server


@contextmanager
def on_a_loop(
    start: Callable[[], Awaitable[int]], stop: Callable[[], Awaitable[None]]
) -> Iterator[int]:
    """Run an asynchronous server on a thread of its own; yields its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def begin() -> int:
        return await start()

    async def end() -> None:
        await stop()

    try:
        port = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
        try:
            yield port
        finally:
            asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def listening_server(config: ServerConfig) -> Iterator[Server]:
    """A server that has opened its ports and loads nothing; health and server info answer."""
    server = Server(config)

    async def start() -> int:
        await server._listen()
        assert server.port is not None
        return server.port

    with on_a_loop(start, server.stop):
        yield server


@contextmanager
def listening(config: ServerConfig) -> Iterator[str]:
    """The address of such a server."""
    with listening_server(config) as server:
        yield f"127.0.0.1:{server.port}"
