"""What clients saw of their calls, to be held against what the server counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from grpc.aio import UsageError

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import CmamilError, DeadlineExceeded, ServerUnreachable

_T = TypeVar("_T")
_REPEATED = "UNAVAILABLE"  # by the client, unseen


class Ledger:
    """One line for each kind of call and ending.

    Attributes:
        seen: how many calls of a method ended with a code.
        given_up: how many of a method the client left before it had an answer; the server may have
            counted them as anything, or not at all.
    """

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.given_up: Counter[str] = Counter()

    async def ask(self, method: str, call: Coroutine[Any, Any, _T], *, hurried: bool = False) -> _T:
        """The answer to a call, or its error, noted.

        Of a ``hurried`` one the answer may have come when for the server the time was just over.
        """
        try:
            answer = await call
        except (asyncio.CancelledError, DeadlineExceeded, ServerUnreachable, UsageError):
            self.given_up[method] += 1
            raise
        except CmamilError as problem:
            self.seen[method, problem.grpc_status] += 1
            raise
        if hurried:
            self.given_up[method] += 1
        else:
            self.seen[method, "OK"] += 1
        return answer

    def differences(self, counted: Counter[tuple[str, str]]) -> list[str]:
        """Where the server counted fewer calls than were answered, or more than were made."""
        found = []
        for method in {method for method, _ in self.seen} | set(self.given_up):
            codes = {code for name, code in (*self.seen, *counted) if name == method}
            for code in codes - {_REPEATED}:
                seen, server = self.seen[method, code], counted[method, code]
                if not seen <= server <= seen + self.given_up[method]:
                    all_counted = {c: n for (name, c), n in counted.items() if name == method}
                    found.append(
                        f"{method} {code}: {seen} seen, {self.given_up[method]} given up, counted "
                        f"{all_counted}"
                    )
        return found


async def counted(client: AsyncClient) -> Counter[tuple[str, str]]:
    """Calls that the server has counted, by method and code."""
    found: Counter[tuple[str, str]] = Counter()
    for call in (await client.server_stats()).calls:
        found[call.rpc.rpartition("/")[2], call.code] += call.count
    return found


async def idle(client: AsyncClient, within_s: float = 10.0) -> bool:
    """Whether the server has nothing left to do, within some time."""
    async with asyncio.timeout(within_s + 10.0):
        until_s = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < until_s:
            info = await client.server_info()
            if info.active_slides == info.queued_slides == 0:
                return True
            await asyncio.sleep(0.1)
    return False
