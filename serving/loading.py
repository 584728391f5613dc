"""Load and unload models while the server works, one load at a time."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cmamil_sdk.errors import (
    BundleCorrupt,
    CmamilError,
    ModelExists,
    ModelNotReady,
)
from cmamil_sdk.machine import return_free_memory

from .bundle_roots import FoundBundle, find_bundle
from .config import ServerConfig
from .logs import Event
from .models import LoadedModel, ModelTable, load_model, resource_of
from .pool import WorkerPool
from .trial import try_bundle
from .worker_models import add_model, drop_model

LOG = logging.getLogger(__name__)

_T = TypeVar("_T")

_LAST_MOMENT_S = 1.0


class ModelLoader:
    """Changes the models of a table and of the workers together.

    The work goes on in tasks of its own: who asked for it may go away. A load that nobody waits for is
    given up and leaves nothing; what is being unloaded is unloaded all the same.
    """

    def __init__(self, config: ServerConfig, models: ModelTable, pool: WorkerPool) -> None:
        self._config = config
        self._models = models
        self._pool = pool
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count(len(models.all()))
        self._loads: set[asyncio.Task[LoadedModel]] = set()
        self._unloads: dict[str, asyncio.Task[None]] = {}

    async def load(self, text: str) -> LoadedModel:
        """Verify, load and test the bundle at a path, after the loads before; the model if it is ready.

        Raises:
            BundlePathForbidden, BundleNotFound: as :func:`find_bundle`.
            ModelExists: there is such a model, of other content.
            ModelNotReady: there is such a model, and it is being unloaded.
            CmamilError: as :func:`try_bundle`, :func:`load_model` and :func:`add_model`.
        """
        task = asyncio.get_running_loop().create_task(self._load(text))
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def unload(self, name: str) -> None:
        """Take no new requests for a version, wait for those at work, and free its memory.

        Raises:
            RequestInvalid, ModelNotFound, ModelNotReady: as :meth:`ModelTable.find_version`.
            ModelNeeded: it is the default of several versions, or the only model.
        """
        task = self._unloads.get(name)
        if task is None:
            model = self._models.find_version(name, field="name")
            self._models.withdraw(model)
            task = asyncio.get_running_loop().create_task(self._unload(model))
            self._unloads[name] = task
        await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what has not ended, and after a moment what it leaves as well."""
        tasks: set[asyncio.Task[Any]] = {*self._loads, *self._unloads.values()}
        for _ in range(2):
            for task in tasks:
                task.cancel()
            if tasks:
                _, tasks = await asyncio.wait(tasks, timeout=_LAST_MOMENT_S)

    async def _load(self, text: str) -> LoadedModel:
        async with self._one_at_a_time:
            started_s = time.monotonic()
            found = await _to_its_end(find_bundle, text, self._config.bundle_roots)
            known = self._known(found)
            if known is not None:
                return known
            label = resource_of(found.manifest)
            LOG.info(Event("model_loading", model=label))
            try:
                with self._models.loading(found.manifest, found.sha256):
                    model = await self._load_everywhere(found)
            except BaseException as problem:
                reason = problem.reason if isinstance(problem, CmamilError) else "given up"
                LOG.warning(Event("model_not_loaded", model=label, reason=reason))
                raise
            took_s = round(time.monotonic() - started_s, 2)
            LOG.info(Event("model_loaded", model=label, took_s=took_s))
            return model

    def _known(self, found: FoundBundle) -> LoadedModel | None:
        """The same model where it is there."""
        name = resource_of(found.manifest)
        if self._models.is_unloading(found.manifest):
            raise ModelNotReady(f"{name} is still being unloaded; try again when it is gone.")
        model = self._models.lookup(found.manifest.name, found.manifest.version)
        if model is not None and model.bundle.sha256 != found.sha256:
            raise ModelExists(
                f"This server has another {name}, of sha256 {model.bundle.sha256[:12]}…, and "
                f"{found.shown} has {found.sha256[:12]}…; give it another version."
            )
        return model

    async def _load_everywhere(self, found: FoundBundle) -> LoadedModel:
        """Load it where it may crash, then here and in the workers; then let requests find it."""
        try:
            tried = await try_bundle(found.path, self._config)
            number = next(self._numbers)
            model = await _to_its_end(
                load_model, found.path, number, self._config, tried, dispose=_close
            )
        except CmamilError as problem:
            raise type(problem)(found.public(str(problem))) from problem
        try:
            if model.bundle.sha256 != found.sha256:
                raise BundleCorrupt(f"{found.shown} changed while it was loaded; load it again.")
            await add_model(self._pool, model.spec())
        except BaseException:
            await asyncio.to_thread(_close, model)
            raise
        self._models.add(model)
        return model

    async def _unload(self, model: LoadedModel) -> None:
        LOG.info(Event("model_unloading", model=model.resource))
        try:
            await model.unused()
            await drop_model(self._pool, model.number)
            await asyncio.to_thread(_close, model)
        finally:
            self._models.forget(model)
            del self._unloads[model.resource]
        LOG.info(Event("model_unloaded", model=model.resource))


def _close(model: LoadedModel) -> None:
    model.bundle.close()
    return_free_memory()


async def _to_its_end(
    work: Callable[..., _T], *arguments: Any, dispose: Callable[[_T], None] = lambda _: None
) -> _T:
    """Run ``work`` in a thread, which nothing can interrupt.

    Cancelled, it waits all the same, so that the next one does not begin beside it, and hands what
    came of it to ``dispose``.
    """
    thread = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        if thread.exception() is None:
            await asyncio.to_thread(dispose, thread.result())
        raise


__all__ = ["ModelLoader"]
