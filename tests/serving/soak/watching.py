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

_WINDOW_S = 40.0


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

    def more(self, after_s: float) -> tuple[int, int]:
        """Threads of the server, files of the workers: the most after a moment over the most before."""
        counts = [(s, server.threads, workers.files) for s, server, workers in self.samples]
        most = [
            [
                max(each[which] for each in counts if (each[0] >= after_s) is late)
                for which in (1, 2)
            ]
            for late in (False, True)
        ]
        return most[1][0] - most[0][0], most[1][1] - most[0][1]

    def grown_mib(self) -> float:
        """The least memory of the server in the last third, over that in the first."""
        memory, third = [server.memory_mib for _, server, _ in self.samples], len(self.samples) // 3
        return min(memory[-third:]) - min(memory[:third])

    def slopes(self, after_s: float) -> tuple[float, float]:
        """MiB a minute by which the memory that server and workers keep grows after a moment."""
        seen = [(s, *both) for s, *both in self.samples if s >= after_s]
        return tuple(_slope([(s, held[who].memory_mib) for s, *held in seen]) for who in (0, 1))


def _slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, from ``(seconds, MiB)``.

    What is kept is the least that was seen in each window of 40 s: the rest is work in hand, and garbage
    that waits for its collection. The slope is the median of those between any two windows (Theil and
    Sen), which a single step does not move.
    """
    windows: dict[int, tuple[float, float]] = {}
    for second, mib in samples:
        window = int((second - samples[0][0]) / _WINDOW_S)
        windows[window] = min(windows.get(window, (second, mib)), (second, mib), key=lambda x: x[1])
    pairs = combinations(windows.values(), 2)
    return 60 * statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if a[0] != b[0])
