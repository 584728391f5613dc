"""Add a model to all workers, or take it from them, while they go on with other tasks."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from cmamil_sdk.errors import CmamilError

from .logs import Event
from .messages import AddModel, DropModel, ModelAdded, ModelSpec
from .pool import Slot, WorkerPool

LOG = logging.getLogger(__name__)


async def add_model(pool: WorkerPool, spec: ModelSpec) -> None:
    """Have every worker load a model, one after the other, so that only one is kept from its work.

    Raises:
        CmamilError: a worker cannot load it, or died of it; then none keeps it.
    """
    try:
        # One that has died since, and came back without the model, lacks it again.
        while lacking := [slot for slot in pool.slots if spec.number not in slot.models]:
            reply = await lacking[0].run(AddModel(spec))
            assert isinstance(reply, ModelAdded)
            lacking[0].models.add(spec.number)
            pool.engines[spec.number] = reply.engine
    except BaseException:
        await drop_model(pool, spec.number)
        raise
    # No worker starts in between: from now on each that does has it from its start.
    pool.setup = replace(pool.setup, models=(*pool.setup.models, spec))


async def drop_model(pool: WorkerPool, number: int) -> None:
    """Have every worker free the memory of a model that no request uses."""
    kept = tuple(spec for spec in pool.setup.models if spec.number != number)
    pool.setup = replace(pool.setup, models=kept)
    await asyncio.gather(*(_drop_from(slot, number) for slot in pool.slots))
    pool.engines.pop(number, None)


async def _drop_from(slot: Slot, number: int) -> None:
    slot.models.discard(number)
    try:
        await slot.run(DropModel(number))
    except CmamilError as problem:  # its memory went with the worker
        LOG.warning(Event("model_not_dropped", worker=slot.number, problem=problem.reason))


__all__ = ["add_model", "drop_model"]
