"""Versions of a model that change places while they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import BundleUnsupported

from .traffic import Traffic

Step = tuple[str, Callable[[], Coroutine[Any, Any, Any]]]


async def swap(
    traffic: Traffic, admin: AsyncClient, over: asyncio.Event, every_s: float, *, kills: bool
) -> None:
    """Load the other version, make it the default and unload the first, again and again.

    Ends with version 1 alone, as it began. Where workers are killed a load may fail, and is repeated.
    """
    new, old = "tiny/2", "tiny/1"
    while not over.is_set() or old == "tiny/2":
        steps: list[Step] = [
            ("LoadModel", lambda new=new: admin.load_model(new)),
            ("SetDefaultModelVersion", lambda new=new: admin.set_default_version(new)),
            ("UnloadModel", lambda old=old: admin.unload_model(old)),
        ]
        for method, step in steps:
            await _pause(over, every_s)
            while not await _done(traffic, method, step, kills):
                await asyncio.sleep(1.0)
        traffic.outcomes["swapped"] += 1
        new, old = old, new


async def _done(
    traffic: Traffic, method: str, step: Callable[[], Coroutine[Any, Any, Any]], kills: bool
) -> bool:
    try:
        await traffic.ledger.ask(method, step())
    except BundleUnsupported:
        if not kills:
            raise
        return False
    return True


async def _pause(over: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        pass
