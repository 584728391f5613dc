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
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.features.encoder_process import (
    EncodeBatches,
    EncoderProcess,
    LoadEncoder,
    RunEncoder,
    SlideDone,
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
        try:
            with self._process() as process:
                outputs: dict[str, npt.NDArray[np.float32]] = process.ask(RunEncoder(arrays))
        except ProcessDied as death:
            raise UnexpectedError(
                f"The process that runs {self._load.graph} on {self.info.device} {death}; see standard "
                "error, or use --device cpu."
            ) from death
        return outputs

    def encode(
        self,
        plan: TilePlan,
        batches: TileBatches,
        numbers: range,
        on_open: Callable[[SlideFacts], None],
    ) -> Generator[EncodedBatch]:
        """Features of the batches ``numbers`` of a slide; each retried once if the process dies.

        Args:
            plan: of the slide, which the process opens anew.
            batches: of the plan.
            numbers: which of them.
            on_open: called with what the process's reader is, each time that the slide is opened.

        Raises:
            DecoderCrashed: two processes died on the same batch.
            CmamilError: whatever reading and encoding raise.
        """
        while numbers:
            done = 0
            try:
                for encoded in self._encode(plan, batches, numbers, on_open):
                    done += 1
                    yield encoded
            except ProcessDied as death:
                numbers = numbers[done:]
                suspects, numbers = numbers[:_AT_WORK], numbers[_AT_WORK:]
                for number in suspects:
                    yield from self._retry(plan, batches, number, on_open, death)
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
        first: ProcessDied,
    ) -> Iterator[EncodedBatch]:
        """One batch alone, so that it is to blame if another process dies."""
        try:
            yield from self._encode(plan, batches, range(number, number + 1), on_open)
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
    ) -> Iterator[EncodedBatch]:
        """Features of batches by one process (ProcessDied)."""
        with self._process() as process:
            on_open(process.ask(EncodeBatches(Path(plan.facts.path), batches, numbers)))
            while not isinstance(answer := process.hear(), SlideDone):
                yield answer

    @contextmanager
    def _process(self) -> Iterator[EncoderProcess]:
        """One that does nothing else meanwhile; ended, unless it has answered all that it was asked."""
        process = self._taken()
        try:
            yield process
        except CmamilError:  # its last answer
            self._put_back(process)
            raise
        except BaseException:
            with self._lock:
                self._running.discard(process)
            process.close()
            raise
        else:
            self._put_back(process)

    def _taken(self) -> EncoderProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        try:
            process = EncoderProcess(self._load)
        except ProcessDied as death:
            raise UnexpectedError(
                f"The process that was to load {self._load.graph} on a GPU {death}; see standard error, "
                "or use --device cpu."
            ) from death
        with self._lock:
            self._running.add(process)
        return process

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


def encoder_loader(reader: ReaderName) -> Loader | None:
    """What loads the encoder for slides that ``reader`` opens, in place of ``load_engine``: of all
    readers, cuCIM decodes where the encoder runs.
    """
    return load_isolated if reader == "cucim" else None


__all__ = ["IsolatedEncoder", "encoder_loader", "load_isolated"]
