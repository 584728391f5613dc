"""What watches a server and its calls: its log, its metrics with their page, and traces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from .calls import Call, CallObserver
from .config import ServerConfig
from .logs import CallLog
from .loop_lag import LoopLag
from .metrics import Metrics
from .metrics_port import MetricsPort
from .tokens import TokenFile

if TYPE_CHECKING:
    from .tracing import Tracing


class Observation:
    """The watchers that the configuration asks for."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._tracing: Tracing | None = None
        self._page: MetricsPort | None = None
        self._lag = LoopLag(metrics.count_lag)

    async def open(self, tokens: TokenFile | None) -> CallObserver:
        """Open the page of metrics and the way to the collector of traces; returns the interceptor.

        Raises:
            ConfigInvalid: the metrics' address cannot be used.
            DependencyMissing: OpenTelemetry is asked for and not installed.
        """
        # The trace's id is known first, so that the log can name it.
        watchers: list[Callable[[Call], None]] = []
        if self._config.otlp_endpoint is not None:
            from .tracing import Tracing, export_to  # noqa: PLC0415 - an extra

            self._tracing = Tracing(export_to(self._config.otlp_endpoint))
            watchers.append(self._tracing)
        watchers += [self._metrics.count_call, CallLog(slides=self._config.log_slides)]
        if self._config.metrics_port is not None:
            self._page = MetricsPort(self._config, self._metrics, tokens)
            await self._page.open()
        self._lag.start()
        return CallObserver(watchers)

    @property
    def metrics_port(self) -> int | None:
        """Port of the page of metrics, once it is open."""
        return self._page.port if self._page is not None else None

    async def close(self) -> None:
        """Close the page and send what is left of the traces."""
        self._lag.stop()
        if self._page is not None:
            await self._page.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


__all__ = ["Observation"]
