"""Versions of a model that change places while they are asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from cmamil_sdk.client import AsyncClient
from cmamil_sdk.errors import BundleUnsupported

from .traffic import Traffic

Step = tuple[str, Callable[[], Coroutine[Any, Any, Any]]]


async def swap(
    traffic: Traffic, admin: AsyncClient, for_s: float, *, every_s: float = 3.0, kills: bool = False
) -> None:
    """Load the other version, make it the default and unload the first, again and again.

    Ends with version 1 alone, as it began. Where workers are killed a load may fail, and is repeated.
    """
    until_s = time.monotonic() + for_s
    new, old = "tiny/2", "tiny/1"
    while time.monotonic() < until_s or old == "tiny/2":
        steps: list[Step] = [
            ("LoadModel", lambda new=new: admin.load_model(new)),
            ("SetDefaultModelVersion", lambda new=new: admin.set_default_version(new)),
            ("UnloadModel", lambda old=old: admin.unload_model(old)),
        ]
        for method, step in steps:
            await asyncio.sleep(max(0.0, min(every_s, until_s - time.monotonic())))
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
