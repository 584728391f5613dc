"""The asyncio client's results from a real server are the other client's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from cmamil_sdk.client import AsyncClient, Client
from cmamil_sdk.errors import SlideNotFound


def test_results_are_the_other_clients(address: str, client: Client) -> None:
    async def ask() -> None:
        async with AsyncClient(address, timeout_s=60.0) as asking:
            assert await asking.health() == client.health() == "SERVING"
            assert await asking.models() == client.models()
            assert (await asking.server_info()).engines == client.server_info().engines
            assert await asking.inspect("a.svs", mpp=0.25) == client.inspect("a.svs", mpp=0.25)
            ours, theirs = await asyncio.gather(
                asking.predict("a.svs", attention=True), asking.predict("folder/b c.svs")
            )
            assert theirs.slide == "b c" and ours.probabilities == theirs.probabilities
            expected = client.predict("a.svs", attention=True)
            assert replace(ours, seconds={}, maps=()) == replace(expected, seconds={}, maps=())
            for one, other in zip(ours.maps, expected.maps, strict=True):
                np.testing.assert_array_equal(one.attention, other.attention)
            with pytest.raises(SlideNotFound, match=r"absent\.svs"):
                await asking.predict("absent.svs")

    asyncio.run(ask())


def test_a_cancelled_task_stops_the_work(address: str, client: Client) -> None:
    async def scenario() -> None:
        async with AsyncClient(address) as asking:
            begun = asyncio.Event()
            work = asyncio.create_task(
                asking.predict("a.svs", on_progress=lambda _event: begun.set())
            )
            await begun.wait()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            async with asyncio.timeout(5):
                while (await asking.server_info()).active_slides:
                    await asyncio.sleep(0.02)

    asyncio.run(scenario())
    assert client.predict("a.svs").label
