"""Features, inspections and tensors."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from cmamil_sdk.errors import QueueFull

from .known import tensor_question
from .traffic import Client, Traffic, cancelled_after

EXTRACT = "ExtractFeatures"
_FULL = QueueFull, "too many streams"  # the server sends but a few at a time


async def features(traffic: Traffic, client: Client) -> None:
    """The features of a slide, read to their end or cancelled on the way."""
    slide, bypass = _known(traffic), traffic.rng.random() < 0.5
    call = client.connection.extract_features(slide, bypass_cache=bypass)
    if traffic.rng.random() < 0.3:
        await _broken_off(traffic, call)
        return
    found = await traffic.ended("features", traffic.ledger.ask(EXTRACT, call), _FULL)
    if found is not None:
        traffic.known.check_bag(slide, found[0])


def _known(traffic: Traffic) -> str:
    return traffic.rng.choice(list(traffic.known.bags))


async def _broken_off(traffic: Traffic, call: Coroutine[Any, Any, Any]) -> None:
    work = traffic.ended("features", traffic.ledger.ask(EXTRACT, call), _FULL)
    if await cancelled_after(traffic.rng.uniform(0.0, 0.3), work):
        traffic.outcomes["cancelled"] += 1


async def inspection(traffic: Traffic, client: Client) -> None:
    """What a slide is."""
    slide = _known(traffic)
    call = traffic.ledger.ask("InspectSlide", client.connection.inspect(slide))
    found = await traffic.ended("inspected", call)
    assert found is None or found == traffic.known.inspections[slide]


async def tensors(traffic: Traffic, client: Client) -> None:
    """Tiles for the encoder, by the Open Inference Protocol."""
    call = traffic.ledger.ask("ModelInfer", client.connection._ask(tensor_question()))
    found = await traffic.ended("tensors", call)
    assert found is None or found == traffic.known.tensors
