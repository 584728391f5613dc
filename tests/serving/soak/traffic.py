"""Requests of all kinds, mixed at random, each with the endings that it may have."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import CmamilError, DecoderCrashed

from .known import Known
from .ledger import Ledger

_T = TypeVar("_T")


class Client:
    """One client of the traffic: its connection, and the slides that only it uploads."""

    def __init__(self, connection: AsyncClient, uploads: Mapping[str, Path]) -> None:
        self.connection, self.uploads = connection, uploads


Kind = Callable[["Traffic", Client], Awaitable[None]]


class Traffic:
    """Asks a server, checks each answer, and counts how each request ended.

    Attributes:
        outcomes: how many requests ended how.
        latest_s: the longest that a request lasted beyond its deadline.
    """

    def __init__(
        self, address: str, known: Known, *, token: str | None = None, seed: int = 0
    ) -> None:
        self.address, self.known, self.token = address, known, token
        self.slides = list(known.predictions)
        self.ledger = Ledger()
        self.outcomes: Counter[str] = Counter()
        self.latest_s = 0.0
        self.rng = random.Random(seed)
        self.remembered: dict[str, tuple[str, Any]] = {}
        """Slide and answer by request id."""

    def connect(self) -> AsyncClient:
        """A client of its own connection."""
        return AsyncClient(self.address, timeout_s=120.0, token=self.token)

    def slide(self) -> str:
        """Any of the good ones."""
        return self.rng.choice(self.slides)

    async def ended(
        self, ending: str, call: Awaitable[_T], *others: tuple[type[CmamilError], str]
    ) -> _T | None:
        """Wait for a call and count how it ended: as ``ending``, or None with one of ``others``.

        That a slide is taken for one that ends workers may happen to any of them.
        """
        try:
            answer = await call
        except CmamilError as problem:
            for kind, other in (*others, (DecoderCrashed, "crashed")):
                if isinstance(problem, kind):
                    self.outcomes[other] += 1
                    return None
            raise
        self.outcomes[ending] += 1
        return answer

    async def drive(
        self,
        mixture: Mapping[Kind, int],
        uploads: list[dict[str, Path]],
        more: Callable[[], bool],
    ) -> None:
        """Requests one after another from a client for each of ``uploads``, as long as ``more`` says."""
        kinds, weights = list(mixture), list(mixture.values())

        async def run(mine: Mapping[str, Path]) -> None:
            async with self.connect() as connection:
                client = Client(connection, mine)
                while more():
                    (kind,) = self.rng.choices(kinds, weights)
                    await kind(self, client)

        async with asyncio.TaskGroup() as group:
            for mine in uploads:
                group.create_task(run(mine))


async def cancelled_after(seconds: float, work: Coroutine[Any, Any, Any]) -> bool:
    """Run ``work`` for so long at most; whether it was cancelled. Its errors are raised."""
    task = asyncio.create_task(work)
    await asyncio.wait([task], timeout=seconds)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False
