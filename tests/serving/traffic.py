"""Requests of all kinds, each with the endings that it may have."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import (
    DeadlineExceeded,
    DeadlineTooShort,
    DecoderCrashed,
    SlideCorrupt,
    SlideFormatUnsupported,
    SlideNotFound,
)
from cmamil_sdk.synthetic.svs import write_svs

BAD = {
    "missing.svs": SlideNotFound,
    "text.svs": SlideFormatUnsupported,
    "cut.svs": SlideCorrupt,
}
_KINDS = ("good", "good", "good", "bad", "deadline", "cancelled", "vanishing")


def write_slides(root: Path, count: int) -> list[str]:
    """Slides of one block, about 14 tiles over three scales, each another; and two that are none."""
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.array([205, 130, 175]) + rng.normal(0, 18, (700, 700, 1))
        shown = np.clip(pixels, 0, 255).astype(np.uint8)
        write_svs(shown, root / f"{number}.svs", mpp=0.5, objective_power=20.0)
    shutil.copy(root / "0.svs", root / "cut.svs")
    with (root / "cut.svs").open("r+b") as file:
        file.truncate((root / "0.svs").stat().st_size // 2)
    (root / "text.svs").write_text("this is no slide")
    return [f"{number}.svs" for number in range(count)]


class Traffic:
    """Asks a server, and counts how each request ended.

    Attributes:
        expected: probabilities by slide; a good request must get exactly these.
        outcomes: how many requests ended how.
        latest_s: the longest that a request lasted beyond its deadline.
    """

    def __init__(self, address: str, slides: list[str], seed: int = 0) -> None:
        self.address = address
        self.slides = slides
        self.expected: dict[str, dict[str, float]] = {}
        self.outcomes: Counter[str] = Counter()
        self.latest_s = 0.0
        self.rng = random.Random(seed)

    async def learn(self) -> None:
        """Ask for each slide by itself; one may still be in quarantine, from a test before."""
        todo = list(self.slides)
        async with AsyncClient(self.address, timeout_s=120.0) as client:
            while todo:
                try:
                    self.expected[todo[-1]] = (await client.predict(todo[-1])).probabilities
                    todo.pop()
                except DecoderCrashed:
                    await asyncio.sleep(0.5)

    async def drive(self, clients: int, more: Callable[[], bool]) -> None:
        """Requests one after another from each of so many clients, as long as ``more`` says."""
        await asyncio.gather(*(self._client(more) for _ in range(clients)))

    async def _client(self, more: Callable[[], bool]) -> None:
        async with AsyncClient(self.address, timeout_s=120.0) as client:
            while more():
                await getattr(self, f"_{self.rng.choice(_KINDS)}")(client)

    async def good(self, client: AsyncClient, timeout_s: float | None = None) -> None:
        """One request that is answered right, unless its slide is taken for one that ends workers."""
        slide = self.rng.choice(self.slides)
        try:
            found = await client.predict(slide, timeout_s=timeout_s)
        except DecoderCrashed:
            self.outcomes["crashed"] += 1
        else:
            assert found.probabilities == self.expected[slide]
            self.outcomes["answered"] += 1

    _good = good

    async def _bad(self, client: AsyncClient) -> None:
        slide, error = self.rng.choice(list(BAD.items()))
        try:
            await client.predict(slide)
        except error:
            self.outcomes["bad slide"] += 1
        except DecoderCrashed:
            self.outcomes["crashed"] += 1
        else:
            raise AssertionError(f"{slide} was predicted")

    async def _deadline(self, client: AsyncClient) -> None:
        allowed_s = self.rng.uniform(0.01, 0.5)
        started_s = time.monotonic()
        try:
            await self.good(client, timeout_s=allowed_s)
        except (DeadlineExceeded, DeadlineTooShort):
            self.outcomes["out of time"] += 1
        self.latest_s = max(self.latest_s, time.monotonic() - started_s - allowed_s)

    async def _cancelled(self, client: AsyncClient) -> None:
        await self.cancelled(client, self.rng.uniform(0.0, 0.3))

    async def cancelled(self, client: AsyncClient, after_s: float) -> None:
        """One request that is cancelled, unless it is answered before."""
        work = asyncio.create_task(self.good(client))
        await asyncio.wait([work], timeout=after_s)
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1

    async def _vanishing(self, _client: AsyncClient) -> None:
        """A client whose connection closes in the middle of a call."""
        client = AsyncClient(self.address)
        work = asyncio.create_task(client.predict(self.rng.choice(self.slides)))
        await asyncio.wait([work], timeout=self.rng.uniform(0.0, 0.2))
        await client.close()
        await asyncio.gather(work, return_exceptions=True)
        self.outcomes["vanished"] += 1


async def idle(address: str, within_s: float = 10.0) -> bool:
    """Whether the server has nothing left to do, within some time."""
    until_s = time.monotonic() + within_s
    async with AsyncClient(address) as client:
        while time.monotonic() < until_s:
            info = await client.server_info()
            if info.active_slides == info.queued_slides == 0:
                return True
            await asyncio.sleep(0.1)
    return False


async def counted(address: str) -> Counter[str]:
    """Predictions that the server has counted, by their status."""
    async with AsyncClient(address) as client:
        stats = await client.server_stats()
    found: Counter[str] = Counter()
    for call in stats.calls:
        if call.rpc.endswith("/StreamPredictSlide"):
            found[call.code] += call.count
    return found
