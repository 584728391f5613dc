"""The worker process: opens slides, plans them, reads and encodes their tiles, one task at a time.

It is a program of its own (``python -m cmamil_sdk.serving.worker FD``) with one open socket to the
server. What it decodes may kill it; the server then starts another. It never outlives the server.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from cmamil_sdk.engines import Engine, EngineInfo, load_engine
from cmamil_sdk.errors import (
    CmamilError,
    EngineMissing,
    MemoryTooSmall,
    ModelNotFound,
    NonFiniteOutput,
    SlideTooLarge,
)
from cmamil_sdk.features.encode import (
    DEVICE_CALL_TILES,
    DecodedBatch,
    EncodedBatch,
    check_finite,
    decode_batch,
    decoding_device,
    encode_batch,
    encode_together,
    infer_tiles,
)
from cmamil_sdk.machine import return_free_memory
from cmamil_sdk.slides import ReaderName, SlideFacts
from cmamil_sdk.tiling.plan import make_plan

from .messages import (
    AddModel,
    Done,
    DropModel,
    EncoderSpec,
    EncodeTiles,
    EncodeTogether,
    Failed,
    GraphOutputs,
    GraphSpec,
    MakePlan,
    ModelAdded,
    ModelDropped,
    ModelSpec,
    Parts,
    Planned,
    ReadFacts,
    Ready,
    Reply,
    RunGraph,
    SlideTask,
    Task,
    WorkerSetup,
    described,
    frame,
)
from .open_slides import OpenSlides
from .task_frames import receive_task

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_NICENESS = 5  # the server's loop goes first: it needs little, and at once

_T = TypeVar("_T")


class Worker:
    """Answers tasks with readers and engines of its own."""

    def __init__(self, setup: WorkerSetup) -> None:
        """Load the encoders, then limit this process's memory.

        Raises:
            BundleCorrupt: a graph is not the one that the server verified.
            BundleUnsupported, EngineMissing: it cannot be run here.
        """
        self._setup = setup
        self._models: dict[int, ModelSpec] = {}
        self._engines: dict[tuple[tuple[str, ...], str], Engine] = {}
        self._is_limited = False
        for spec in setup.models:
            self._add(spec)
        infos = [engine.info for engine in self._engines.values()]
        places = (decoding_device(setup.reader, info) for info in infos)
        device = next((place for place in places if place != "cpu"), "cpu")
        self._slides = OpenSlides(setup, device)
        # A CUDA context reserves far more address space than it uses.
        on_cpu = all(info.device == "cpu" for info in infos)
        if setup.memory_mib and on_cpu:
            limit = setup.memory_mib * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            self._is_limited = True

    def ready(self) -> Ready:
        """The engine of each encoder; its reason says too where tiles are decoded, if on a GPU."""
        return Ready({number: self._encoder_info(number) for number in self._models})

    def answer(self, task: Task | EncodeTogether) -> Reply | Parts:
        """Do one task, or several together; whatever goes wrong with one becomes :class:`Failed`."""
        if isinstance(task, EncodeTogether):
            return Parts(tuple(self._encode_together(task.tasks)))
        return self._guarded(task, lambda: self._do(task))

    def _guarded(self, task: Task, work: Callable[[], _T]) -> _T | Failed:
        """What ``work`` for a task returns, or how it failed."""
        try:
            return work()
        except CmamilError as problem:
            return Failed(problem.reason, self._public(str(problem), task))
        except MemoryError:
            leaf = SlideTooLarge if isinstance(task, SlideTask) else MemoryTooSmall
            error = leaf(
                f"{described(task)} needs more memory than a worker may use "
                f"({self._setup.memory_mib} MiB); raise the server's worker_memory_mib."
            )
            return Failed(error.reason, str(error))
        except Exception as problem:  # noqa: BLE001
            # One task must not end the worker; the server logs the traceback.
            message = f"{described(task)} failed with {type(problem).__name__}."
            return Failed("UNEXPECTED_ERROR", message, traceback.format_exc())

    def _do(self, task: Task) -> Done:
        match task:
            case ReadFacts():
                return self._slides.reader(task.slide, task.mpp).facts
            case MakePlan():
                return self._plan(task)
            case EncodeTiles():
                return self._encode(task)
            case RunGraph():
                return self._run(task)
            case AddModel():
                self._add(task.spec)
                return ModelAdded(self._encoder_info(task.spec.number))
            case DropModel():
                self._drop(task.model)
                return ModelDropped()

    def _model(self, number: int) -> ModelSpec:
        try:
            return self._models[number]
        except KeyError as problem:
            raise ModelNotFound(
                "The model was unloaded before the request was done; ask another version."
            ) from problem

    def _add(self, spec: ModelSpec) -> None:
        if self._is_limited and spec.encoder.engine.device != "cpu":
            raise EngineMissing(
                f"The workers of this server run on the CPU, and this model on "
                f"{spec.encoder.engine.device}; start a server with it, or set worker_memory_mib to 0."
            )
        self._engine(spec.encoder)
        self._models[spec.number] = spec

    def _drop(self, number: int) -> None:
        self._models.pop(number, None)
        specs = self._models.values()
        used = {graph.key for spec in specs for graph in (spec.encoder, spec.aggregator)}
        for key in self._engines.keys() - used:
            self._engines.pop(key).close()
        return_free_memory()

    def _encoder_info(self, number: int) -> EngineInfo:
        info = self._engines[self._models[number].encoder.key].info
        return _with_decoder(info, self._setup.reader)

    def _encode(self, task: EncodeTiles) -> EncodedBatch:
        encoder = self._model(task.model).encoder
        reader = self._slides.reader(task.slide, task.mpp)
        return encode_batch(reader, task.batch, self._engines[encoder.key])

    def _encode_together(self, tasks: Sequence[EncodeTiles]) -> list[EncodedBatch | Failed]:
        """Read each task's tiles by its own reader, and encode those of all together."""
        read = [self._guarded(task, partial(self._decode, task)) for task in tasks]
        decoded = [each for each in read if not isinstance(each, Failed)]
        try:
            encoder = self._model(tasks[0].model).encoder
            encoded = iter(encode_together(decoded, self._engines[encoder.key]) if decoded else [])
        except Exception:  # noqa: BLE001
            # Whose fault it was is not known: each by itself, where it is.
            return [self._guarded(task, partial(self._encode, task)) for task in tasks]
        return [
            each
            if isinstance(each, Failed)
            else self._guarded(task, partial(_checked, task, next(encoded)))
            for task, each in zip(tasks, read, strict=True)
        ]

    def _decode(self, task: EncodeTiles) -> DecodedBatch:
        return decode_batch(self._slides.reader(task.slide, task.mpp), task.batch)

    def _run(self, task: RunGraph) -> GraphOutputs:
        engine = self._engine(self._graph(task))
        if task.graph == "encoder":
            outputs = {"features": infer_tiles(engine, task.inputs["tiles"])}
        else:
            outputs = engine.infer(task.inputs)
        if not all(np.isfinite(values).all() for values in outputs.values()):
            raise NonFiniteOutput(
                f"The {task.graph} returned NaN or infinity; run `cmamil verify` on the bundle, or "
                "choose another engine or a higher precision."
            )
        return GraphOutputs(task.part, outputs)

    def _graph(self, task: RunGraph) -> GraphSpec:
        spec = self._model(task.model)
        return spec.encoder if task.graph == "encoder" else spec.aggregator

    def _engine(self, graph: GraphSpec) -> Engine:
        """The engine of a graph, loaded when it is first asked for."""
        if graph.key not in self._engines:
            self._engines[graph.key] = _load(graph)
        return self._engines[graph.key]

    def _plan(self, task: MakePlan) -> Planned:
        started = time.perf_counter()
        reader = self._slides.reader(task.slide, task.mpp)
        self._check_size(reader.facts)
        opened = time.perf_counter()
        recipe = self._model(task.model).encoder.recipe
        plan = make_plan(reader, recipe, max_tiles=self._setup.max_tiles)
        return Planned(plan, opened - started, time.perf_counter() - opened)

    def _check_size(self, facts: SlideFacts) -> None:
        pixels = facts.width * facts.height
        if pixels > self._setup.max_slide_pixels or len(facts.levels) > self._setup.max_levels:
            raise SlideTooLarge(
                f"{facts.path} has {pixels} pixels and {len(facts.levels)} levels, this server "
                f"takes {self._setup.max_slide_pixels} and {self._setup.max_levels}; "
                "cut the slide, or raise the server's limits."
            )

    def _public(self, message: str, task: Task) -> str:
        """Name slide or graph as the client may: beneath its root, never by descriptor or whole path."""
        if not isinstance(task, SlideTask):
            spec = task.spec if isinstance(task, AddModel) else self._models.get(task.model)
            if spec is None:
                return message
            return message.replace(f"{Path(spec.encoder.graph).parent}/", "")
        return self._slides.public(message, task.slide)


def _checked(task: EncodeTiles, encoded: EncodedBatch) -> EncodedBatch:
    check_finite(encoded, task.slide.shown)
    return encoded


def _load(spec: GraphSpec) -> Engine:
    info = spec.engine
    engine = load_engine(
        Path(spec.graph),
        engine=info.name,
        device=info.device,
        precision=info.precision,
        callers=1,
        reason=info.reason,
        hashes=spec.hashes,
    )
    if isinstance(spec, EncoderSpec):
        try:
            # On a CPU the first tile costs most; a whole call would make every start slower.
            engine.warm_up(1 if info.device == "cpu" else DEVICE_CALL_TILES)
        except BaseException:
            engine.close()
            raise
    return engine


def _with_decoder(info: EngineInfo, reader: ReaderName) -> EngineInfo:
    device = decoding_device(reader, info)
    if device == "cpu":
        return info
    return replace(info, reason=f"{info.reason}; cuCIM decodes on {device}")


def confine(parent_pid: int) -> None:
    """Die with the server and only with it, gain no privileges, write no core file; go behind it."""
    # A service manager may signal every process; the server drains first and then ends its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)


def main() -> None:
    """Serve the socket whose descriptor is the first argument until the server closes it."""
    with socket.socket(fileno=int(sys.argv[1])) as pipe:
        setup = receive_task(pipe)
        if not isinstance(setup, WorkerSetup):
            return
        confine(setup.parent_pid)
        try:
            worker = Worker(setup)
        except CmamilError as problem:
            pipe.sendall(frame(Failed(problem.reason, str(problem))))
            return
        pipe.sendall(frame(worker.ready()))
        while (task := receive_task(pipe)) is not None:
            pipe.sendall(frame(worker.answer(task)))


if __name__ == "__main__":
    main()
