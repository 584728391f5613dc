"""``grpc.health.v1``: whether work is taken, by service, and whether the server is alive at all."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

LIVENESS = "liveness"
"""SERVING from the moment that the port is open: asks for a restart only if nothing answers."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """NOT_SERVING for every service until :meth:`tell` says otherwise."""

    def __init__(self, services: Sequence[str]) -> None:
        self._names = ("", *services)
        self._servicer = health_aio.HealthServicer()

    async def begin(self) -> None:
        """Alive, and not ready."""
        await self._servicer.set(LIVENESS, _SERVING)
        await self.tell(ready=False)

    async def tell(self, *, ready: bool) -> None:
        """Say whether work is taken; of no effect after :meth:`drain`."""
        for name in self._names:
            await self._servicer.set(name, _SERVING if ready else _NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING from now on."""
        await self._servicer.enter_graceful_shutdown()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Answer on ``server``."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)


__all__ = ["LIVENESS", "Health"]
