"""A process of its own that holds an encoder on a GPU and decodes slides there, as its owner sees it."""

from __future__ import annotations

import pickle
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmamil_sdk.child_pipe import (
    Failed,
    KnownClasses,
    ProcessDied,
    child_environment,
    frame,
    how_it_ended,
    receive_bytes,
)
from cmamil_sdk.engines.base import Array, EngineInfo
from cmamil_sdk.errors import error_from_reason
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.tiling.batches import TileBatch, TileBatches
from cmamil_sdk.tiling.geometry import OwnLevel, ReadGeometry

COMMAND = (sys.executable, "-P", "-m", "cmamil_sdk.features.encoder_child")

SILENT_S = 120.0
"""A process that opens or reads a slide and does not answer for so long is taken for dead."""

_ENDING_S = 5.0
_LOOK_S = 0.1
_MAX_REPLY_BYTES = 2**28


@dataclass(frozen=True)
class LoadEncoder:
    """The first question: load a graph, with options of :func:`~cmamil_sdk.engines.load_engine`.

    Answered with :class:`EngineInfo`.
    """

    graph: Path
    options: Mapping[str, Any]


@dataclass(frozen=True)
class RunEncoder:
    """Asks for the graph's outputs; answered with these by name."""

    inputs: Mapping[str, Array]


@dataclass(frozen=True)
class WarmUp:
    """Asks to be ready for calls of so many rows; answered with :class:`Held`. Zero rows: just answer."""

    rows: int


@dataclass(frozen=True)
class Held:
    """Memory of the engine, as :meth:`~cmamil_sdk.engines.Engine.memory_bytes`."""

    memory_bytes: int | None


@dataclass(frozen=True)
class EncodeBatches:
    """Asks for the features of the batches ``numbers`` of a slide.

    Answered with what the reader is (:class:`SlideFacts`), an :class:`EncodedBatch` for each, in order,
    and :class:`SlideDone`.
    """

    path: Path
    batches: TileBatches
    numbers: range


@dataclass(frozen=True)
class SlideDone:
    """All batches were sent, and the slide is closed."""


_KNOWN = KnownClasses(
    (
        EncodedBatch,
        EngineInfo,
        Failed,
        Held,
        Level,
        OwnLevel,
        ReadGeometry,
        SlideDone,
        SlideFacts,
        TileBatch,
    )
)


class Stopped(Exception):
    """The caller's flag was seen while a process was waited for."""


class EncoderProcess:
    """Started by its constructor, ended by :meth:`close`, and by the end of this process.

    Attributes:
        info: the engine that it has loaded.
        pid: of the process.
    """

    def __init__(self, load: LoadEncoder, stop: threading.Event | None = None) -> None:
        """Start the process and have it load the encoder.

        Raises:
            ProcessDied: the process ended.
            Stopped: ``stop`` was set.
            CmamilError: whatever loading raises, and EngineMissing where cuCIM cannot decode on a GPU.
        """
        self._pipe, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                # Ctrl-C in a terminal reaches the whole process group: the parent decides alone.
                start_new_session=True,
            )
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        try:
            self.info: EngineInfo = self.ask(load, stop=stop)
        except BaseException:
            self.close()
            raise

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    def ask(
        self,
        question: LoadEncoder | RunEncoder | WarmUp | EncodeBatches,
        timeout_s: float | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """The first answer to a question.

        Args:
            question: what is asked.
            timeout_s: a process that says nothing for so long is taken for dead; None waits for ever.
            stop: ends the waiting when it is set.

        Raises:
            ProcessDied: the process ended; this object is of no more use than to be closed.
            Stopped: ``stop`` was set; the same holds.
            CmamilError: that was the answer.
        """
        try:
            self._pipe.settimeout(None)
            self._pipe.sendall(frame(question))
        except OSError as problem:
            raise self._died() from problem
        return self.hear(timeout_s, stop)

    def hear(self, timeout_s: float | None = None, stop: threading.Event | None = None) -> Any:
        """The next answer to the last question; arguments and errors as :meth:`ask`."""
        try:
            self._wait(timeout_s, stop)
            self._pipe.settimeout(timeout_s)
            body = receive_bytes(self._pipe, _MAX_REPLY_BYTES)
            answer = None if body is None else _KNOWN.unpickled(body)
        except TimeoutError as problem:
            raise ProcessDied(f"was silent for {timeout_s:g} s") from problem
        except OSError as problem:
            raise self._died() from problem
        except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError) as problem:
            raise ProcessDied(f"sent what is refused ({problem})") from problem
        if answer is None:
            raise self._died()
        if isinstance(answer, Failed):
            raise error_from_reason(answer.reason, answer.message)
        return answer

    def close(self) -> None:
        """End the process and wait until it is gone, but not for one that hangs in a driver."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
        self._pipe.close()

    def _wait(self, timeout_s: float | None, stop: threading.Event | None) -> None:
        """Until there is something to receive, or the process has ended (TimeoutError, Stopped)."""
        watch = select.poll()
        watch.register(self._pipe, select.POLLIN)
        started = time.monotonic()
        while not watch.poll(_LOOK_S * 1000):
            if stop is not None and stop.is_set():
                raise Stopped
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise TimeoutError

    def _died(self) -> ProcessDied:
        try:
            return ProcessDied(how_it_ended(self._process.wait(_ENDING_S)))
        except subprocess.TimeoutExpired:
            return ProcessDied("hung up")


__all__ = [
    "COMMAND",
    "SILENT_S",
    "EncodeBatches",
    "EncoderProcess",
    "Held",
    "LoadEncoder",
    "RunEncoder",
    "SlideDone",
    "Stopped",
    "WarmUp",
]
