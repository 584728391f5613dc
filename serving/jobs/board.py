"""Where the jobs at work stand, and who follows them; in memory, because it ends with the server."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cmamil_sdk.errors import ServerDraining

from ..predictor import Stage

Report = Callable[[Stage], None]


class Board:
    """For one event loop."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
        self._followers: defaultdict[str, dict[asyncio.Future[None], Report]] = defaultdict(dict)
        self._closed = False

    def stage(self, job: str) -> Stage | None:
        """Where a job stands; None if it is not at work."""
        return self._stages.get(job)

    def report(self, job: str, stage: Stage) -> None:
        """Note where a job stands, and tell who follows it."""
        self._stages[job] = stage
        for report in self._followers.get(job, {}).values():
            report(stage)

    def end(self, job: str) -> None:
        """Note that a job has ended or is gone."""
        self._stages.pop(job, None)
        for ended in self._followers.get(job, {}):
            if not ended.done():
                ended.set_result(None)

    @contextmanager
    def following(self, job: str, report: Report) -> Iterator[asyncio.Future[None]]:
        """Call ``report`` with each stage; the future is done when the job has ended.

        Raises:
            ServerDraining: the server ends, at once or from the future.
        """
        if self._closed:
            raise _draining()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers[job][ended] = report
        try:
            if (stage := self.stage(job)) is not None:
                report(stage)
            yield ended
        finally:
            del self._followers[job][ended]
            if not self._followers[job]:
                del self._followers[job]

    def close(self) -> None:
        """Send all followers away: the jobs go on in the next server."""
        self._closed = True
        for followers in self._followers.values():
            for ended in followers:
                if not ended.done():
                    ended.set_exception(_draining())


def _draining() -> ServerDraining:
    return ServerDraining("The server is shutting down; its jobs go on when it is started again.")


__all__ = ["Board", "Report"]
