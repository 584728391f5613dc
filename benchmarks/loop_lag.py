"""How late a server's event loop was while it was busy, as its page of metrics says."""

from __future__ import annotations

import math
import socket
import urllib.request
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

_METRIC = "cmamil_event_loop_lag_seconds"
_TIMEOUT_S = 10.0


class LagProbe:
    """Reads the server's histogram of lags at both ends of a block, or at :meth:`start` and :meth:`stop`.

    Attributes:
        n: how often the server looked at its loop meanwhile.
    """

    def __init__(self, metrics_port: int, token: str | None = None) -> None:
        """``token``: one with the role ``metrics``, where the server wants it."""
        self.n = 0
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._page = urllib.request.Request(url, headers=headers)
        self._counts: dict[float, int] = {}

    def __enter__(self) -> Self:
        """The probe, started."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, unless the block failed."""
        if kind is None:
            self.stop()

    def start(self) -> None:
        """What was counted before does not count."""
        self._counts = _cumulative(self._page)

    def stop(self) -> None:
        """Read again."""
        after = _cumulative(self._page)
        self._counts = {bound: after[bound] - self._counts[bound] for bound in after}
        self.n = self._counts[math.inf]

    def percentile_s(self, percent: float) -> float:
        """The lag that ``percent`` % of the samples did not exceed, interpolated within its bucket.

        Of lags beyond the last bound of the histogram, that bound.
        """
        wanted, low_s, below = percent / 100 * self.n, 0.0, 0
        for bound_s, count in sorted(self._counts.items()):
            if bound_s == math.inf:
                break
            if count >= wanted and count > below:
                return low_s + (bound_s - low_s) * (wanted - below) / (count - below)
            low_s, below = bound_s, count
        return low_s


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cumulative(page: urllib.request.Request) -> dict[float, int]:
    """Samples up to each bound, seconds."""
    with urllib.request.urlopen(page, timeout=_TIMEOUT_S) as answer:
        text = answer.read().decode("utf-8")
    return {
        float(sample.labels["le"]): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{_METRIC}_bucket"
    }


__all__ = ["LagProbe", "free_port"]
