"""What a server and its workers hold, second by second."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from itertools import combinations

from cmamil_sdk.client import AsyncClient

from ..programs import Held, children, held_by

_MOST_POINTS = 240


@dataclass
class Watch:
    """Looks at the processes every second, and kills a worker now and then.

    None is killed while another starts: on a busy machine none would ever be ready.

    Attributes:
        samples: ``(seconds, server, workers)``, the first when the traffic began.
        killed: how many workers were.
    """

    pid: int
    kills: int = 0
    every_s: float = 2.0
    killed: int = 0
    samples: list[tuple[float, Held, Held]] = field(default_factory=list)

    async def run(self, client: AsyncClient, over: asyncio.Event) -> None:
        """Until the event is set."""
        rng, due_s, began_s = random.Random(0), time.monotonic(), time.monotonic()
        while not over.is_set():
            await asyncio.sleep(1.0)
            self.samples.append((time.monotonic() - began_s, *self.look()))
            if self.killed == self.kills or time.monotonic() < due_s + self.every_s:
                continue
            states = [worker.state for worker in (await client.server_info()).workers]
            if "starting" not in states:
                os.kill(rng.choice(children(self.pid)), signal.SIGKILL)
                self.killed += 1
                due_s = time.monotonic()

    def look(self) -> tuple[Held, Held]:
        """Server and workers, now."""
        return held_by(self.pid), sum(map(held_by, children(self.pid)), Held())

    def threads(self, after_s: float) -> tuple[int, int]:
        """The most threads of the server before a moment and after it."""
        seen = [(second, server.threads) for second, server, _ in self.samples]
        before, later = ([n for s, n in seen if (s >= after_s) is late] for late in (False, True))
        return max(before), max(later)

    def slopes(self, after_s: float) -> tuple[float, float]:
        """MiB a minute that server and workers grow by after a moment.

        By Theil and Sen, the median of the slopes of all pairs, which single jumps do not move.
        """
        seen = [sample for sample in self.samples if sample[0] >= after_s]
        seen = seen[:: 1 + len(seen) // _MOST_POINTS]
        minutes = [second / 60 for second, _, _ in seen]
        return (
            theil_sen(minutes, [server.memory_mib for _, server, _ in seen]),
            theil_sen(minutes, [workers.memory_mib for _, _, workers in seen]),
        )


def theil_sen(x: list[float], y: list[float]) -> float:
    """The median slope between any two points."""
    pairs = combinations(range(len(x)), 2)
    return statistics.median((y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs)
