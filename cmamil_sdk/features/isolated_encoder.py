"""An encoder in a process of its own, where the slides that it encodes are decoded too.

Pixels in a GPU's memory belong to the process that decoded them, and a decoder may crash: so where a GPU
decodes, reader and engine live in a child process, and what comes back are features.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.child_pipe import ProcessDied
from cmamil_sdk.engines import Engine, load_engine
from cmamil_sdk.engines.base import Array, Inputs
from cmamil_sdk.engines.choose import choose_engine
from cmamil_sdk.engines.gated import Loader
from cmamil_sdk.errors import CmamilError, DecoderCrashed, UnexpectedError
from cmamil_sdk.features import encoder_process
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.features.encoder_process import (
    EncodeBatches,
    EncoderProcess,
    Held,
    LoadEncoder,
    RunEncoder,
    SlideDone,
    WarmUp,
)
from cmamil_sdk.slides import ReaderName
from cmamil_sdk.slides.base import SlideFacts
from cmamil_sdk.tiling.batches import TileBatches
from cmamil_sdk.tiling.plan import TilePlan
from cmamil_sdk.wording import counted

_AT_WORK = 2
"""Batches that a process has begun and not answered: one is encoded, the next decoded."""


class IsolatedEncoder:
    """An :class:`~cmamil_sdk.engines.Engine` in a child process, which decodes slides as well.

    As many processes are started as there are callers at a time; one that died is replaced.
    """

    def __init__(self, graph: Path, **options: Any) -> None:
        """Have a process load a graph; ``options`` are those of :func:`~cmamil_sdk.engines.load_engine`.

        Raises:
            CmamilError: as that; ReaderMissing, where cuCIM cannot decode on a GPU.
        """
        self._load = LoadEncoder(graph, options)
        self._lock = threading.Lock()
        self._idle: list[EncoderProcess] = []
        self._running: set[EncoderProcess] = set()
        with self._process() as process:
            self.info = info = process.info
        # One that is started later must be the same, whatever "auto" would choose by then.
        chosen = {"engine": info.name, "device": info.device, "precision": info.precision}
        self._load = replace(self._load, options={**options, **chosen, "reason": info.reason})

    def infer(self, inputs: Inputs) -> dict[str, npt.NDArray[np.float32]]:
        """Run the graph, as every engine does, on arrays of the host."""
        arrays: dict[str, Array] = {name: np.asarray(values) for name, values in inputs.items()}
        outputs: dict[str, npt.NDArray[np.float32]] = self._ask(RunEncoder(arrays))
        return outputs

    def warm_up(self, rows: int) -> None:
        """Warm a process up, as every engine does; further ones are started when they are needed."""
        self._ask(WarmUp(rows))

    def memory_bytes(self) -> int | None:
        """Of a process that is not at work; each has as much."""
        held: Held = self._ask(WarmUp(0))
        return held.memory_bytes

    def _ask(self, question: RunEncoder | WarmUp) -> Any:
        """What a process answers (UnexpectedError if it dies)."""
        try:
            with self._process() as process:
                return process.ask(question)
        except ProcessDied as death:
            raise UnexpectedError(
                f"The process that runs {self._load.graph} on {self.info.device} {death}; see standard "
                "error, or use --device cpu."
            ) from death

    def encode(
        self,
        plan: TilePlan,
        batches: TileBatches,
        numbers: range,
        on_open: Callable[[SlideFacts], None],
        stop: threading.Event,
    ) -> Generator[EncodedBatch]:
        """Features of the batches ``numbers`` of a slide; each retried once if the process dies.

        Args:
            plan: of the slide, which the process opens anew.
            batches: of the plan.
            numbers: which of them.
            on_open: called with what the process's reader is, each time that the slide is opened.
            stop: ends it when it is set, even while a process is silent.

        Raises:
            DecoderCrashed: two processes died on the same batch.
            Stopped: ``stop`` was set while a process was waited for.
            CmamilError: whatever reading and encoding raise.
        """
        while numbers:
            done = 0
            try:
                for encoded in self._encode(plan, batches, numbers, on_open, stop):
                    done += 1
                    yield encoded
            except ProcessDied as death:
                numbers = numbers[done:]
                suspects, numbers = numbers[:_AT_WORK], numbers[_AT_WORK:]
                for number in suspects:
                    yield from self._retry(plan, batches, number, on_open, stop, death)
            else:
                return

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there."""
        with self._lock:
            return [process.pid for process in self._running]

    def close(self) -> None:
        """End the processes that are not at work."""
        with self._lock:
            idle, self._idle = self._idle, []
            self._running.difference_update(idle)
        for process in idle:
            process.close()

    def _retry(
        self,
        plan: TilePlan,
        batches: TileBatches,
        number: int,
        on_open: Callable[[SlideFacts], None],
        stop: threading.Event,
        first: ProcessDied,
    ) -> Iterator[EncodedBatch]:
        """One batch alone, so that it is to blame if another process dies."""
        try:
            yield from self._encode(plan, batches, range(number, number + 1), on_open, stop)
        except ProcessDied as second:
            batch = batches[number]
            scale, row = int(batch.tile_scale[0]), int(batch.plan_row[0])
            x, y = plan.scales[scale].coords[row].tolist()
            raise DecoderCrashed(
                f"{plan.facts.path}: decoding and encoding {counted(len(batch), 'tile')} from ({x}, {y}) "
                f"on {self.info.device} ended two processes (the first {first}, the second {second}); "
                "leave --reader out, which decodes on the CPU."
            ) from second

    def _encode(
        self,
        plan: TilePlan,
        batches: TileBatches,
        numbers: range,
        on_open: Callable[[SlideFacts], None],
        stop: threading.Event,
    ) -> Iterator[EncodedBatch]:
        """Features of batches by one process (ProcessDied)."""
        silent_s = encoder_process.SILENT_S
        with self._process(stop) as process:
            question = EncodeBatches(Path(plan.facts.path), batches, numbers)
            on_open(process.ask(question, silent_s, stop))
            while not isinstance(answer := process.hear(silent_s, stop), SlideDone):
                yield answer

    @contextmanager
    def _process(self, stop: threading.Event | None = None) -> Iterator[EncoderProcess]:
        """One that does nothing else meanwhile; ended, unless it has answered all that it was asked."""
        process = self._taken(stop)
        try:
            yield process
        except BaseException as problem:
            # An error that is known is its last answer. After any other it may be of no more use: what
            # goes wrong in CUDA once is the answer to every later question.
            if isinstance(problem, CmamilError) and not isinstance(problem, UnexpectedError):
                self._put_back(process)
            else:
                self._end(process)
            raise
        else:
            self._put_back(process)

    def _taken(self, stop: threading.Event | None) -> EncoderProcess:
        while (process := self._next_idle()) is not None:
            if process.is_running:
                return process
            self._end(
                process
            )  # it died of something else than a slide, and is no slide's first death
        try:
            process = EncoderProcess(self._load, stop)
        except ProcessDied as death:
            raise UnexpectedError(
                f"The process that was to load {self._load.graph} on a GPU {death}; see standard error, "
                "or use --device cpu."
            ) from death
        with self._lock:
            self._running.add(process)
        return process

    def _next_idle(self) -> EncoderProcess | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _end(self, process: EncoderProcess) -> None:
        with self._lock:
            self._running.discard(process)
        process.close()

    def _put_back(self, process: EncoderProcess) -> None:
        with self._lock:
            self._idle.append(process)


def load_isolated(graph: Path, **options: Any) -> Engine:
    """As :func:`~cmamil_sdk.engines.load_engine`; an encoder on a GPU in a process of its own."""
    chosen = choose_engine(options.get("engine", "auto"), options.get("device", "auto"))
    return (
        load_engine(graph, **options)
        if chosen.device == "cpu"
        else IsolatedEncoder(graph, **options)
    )


def memory_mb(engine: Engine, measure: Callable[[int | None], float]) -> float:
    """Memory of this process, and of those that the encoder is in, MB (10^6 bytes).

    Args:
        engine: the encoder.
        measure: :func:`~cmamil_sdk.machine.rss_mb` or :func:`~cmamil_sdk.machine.peak_rss_mb`.
    """
    pids = engine.pids if isinstance(engine, IsolatedEncoder) else []
    return sum(map(measure, [None, *pids]))


def encoder_loader(reader: ReaderName) -> Loader | None:
    """What loads the encoder for slides that ``reader`` opens, in place of ``load_engine``: of all
    readers, cuCIM decodes where the encoder runs.
    """
    return load_isolated if reader == "cucim" else None


__all__ = ["IsolatedEncoder", "encoder_loader", "load_isolated", "memory_mb"]
