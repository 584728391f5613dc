"""How long a health check takes while a server is busy with something else."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from cmamil_sdk.client import Client

_EVERY_S = 0.05


class HealthProbe:
    """Asks for health 20 times a second, on a connection of its own, until the block ends.

    Attributes:
        latencies_s: of each answer, seconds.
    """

    def __init__(self, address: str) -> None:
        self.latencies_s: list[float] = []
        self._address = address
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="health-probe")

    def __enter__(self) -> Self:
        """The probe, at work."""
        self._asking = self._thread.submit(self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop asking; raises what a check raised."""
        self._stop.set()
        self._thread.shutdown()
        self._asking.result()

    def _ask(self) -> None:
        with Client(self._address) as client:
            client.health()  # connects
            while not self._stop.wait(_EVERY_S):
                started = time.perf_counter()
                client.health()
                self.latencies_s.append(time.perf_counter() - started)


__all__ = ["HealthProbe"]
