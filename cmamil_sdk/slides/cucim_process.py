"""A process of its own in which cuCIM decodes one slide, as its owner sees it."""

from __future__ import annotations

import importlib.util
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.child_pipe import ProcessDied, child_environment
from cmamil_sdk.errors import ReaderMissing
from cmamil_sdk.slides import cucim_child
from cmamil_sdk.slides.jpeg_tiles import DamagedTile
from cmamil_sdk.slides.tiff_grids import LayoutUnknown

UInt8 = npt.NDArray[np.uint8]

HOW_TO_INSTALL = "pip install --no-deps cucim-cu13 && pip install click lazy_loader"

CHILD_PROGRAM = cucim_child.__file__

_SILENT_S = 120.0
"""A process that does not answer for so long is taken for dead."""

_ENDING_S = 5.0

# The other decoder behind the same calls takes labels for levels, and answers zeros without a word.
_NOT_HANDED_ON = ("ENABLE_CUSLIDE2",)


def cucim_installed() -> bool:
    """True on Linux where the package is installed; nothing is imported."""
    return sys.platform == "linux" and importlib.util.find_spec("cucim") is not None


class DecoderProcess:
    """Started by its constructor, ended by :meth:`close`, and by the end of this process.

    Attributes:
        version: cuCIM's.
        levels: width, height and downsample of each level that cuCIM sees.
        pid: of the process.
    """

    def __init__(self, slide_fd: int) -> None:
        """Start the process on an open file, which must stay open.

        Raises:
            ReaderMissing: cuCIM cannot be imported.
            LayoutUnknown: it does not take the file.
            ProcessDied: the process ended.
        """
        self._memory_fd = os.memfd_create("pixels")
        self._log_fd = os.memfd_create("log")
        self._memory: mmap.mmap | None = None
        self._pipe, theirs = socket.socketpair()
        self._pipe.settimeout(_SILENT_S)
        handed = (theirs.fileno(), slide_fd, self._memory_fd, self._log_fd)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", CHILD_PROGRAM, *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=self._log_fd,
                stderr=self._log_fd,
                env=_environment(),
                # cuCIM reads a configuration file in the folder it is started in.
                cwd="/",
                # Ctrl-C in a terminal reaches the whole process group: the parent decides alone.
                start_new_session=True,
            )
        except BaseException:
            self._release()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def read(
        self, level: int, corners: Sequence[tuple[int, int]], width: int, height: int
    ) -> UInt8:
        """Regions ``[N, height, width, 3]`` that lie within the level.

        Args:
            level: number of the level.
            corners: top left corners, pixels of level 0.
            width: pixels of the level.
            height: pixels of the level.

        Raises:
            DamagedTile: cuCIM could not decode a tile.
            MemoryError: the process gets no more memory.
            ProcessDied: it ended; this object is of no more use than to be closed.
        """
        shape = (len(corners), height, width, 3)
        memory = self._make_room(math.prod(shape))
        places = [[int(x), int(y)] for x, y in corners]  # numpy's numbers are none for JSON
        answer = self._ask({"level": level, "corners": places, "size": [int(width), int(height)]})
        if "memory" in answer:
            raise MemoryError
        if "problem" in answer:
            raise DamagedTile(f"cuCIM says: {answer['problem']}")
        shared: UInt8 = np.frombuffer(memory, np.uint8, math.prod(shape))
        return shared.reshape(shape).copy()

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._release()

    def _greet(self) -> None:
        seen = self._hear()
        if "missing" in seen:
            raise ReaderMissing(
                f"cuCIM cannot be imported ({seen['missing']}); {HOW_TO_INSTALL}, or leave "
                "--reader out."
            )
        if "problem" in seen:
            raise LayoutUnknown(f"cuCIM refuses it: {seen['problem']}")
        self.version = str(seen["version"])
        self.levels = [(int(w), int(h), float(ds)) for w, h, ds in seen["levels"]]

    def _make_room(self, size: int) -> mmap.mmap:
        if self._memory is None or len(self._memory) < size:
            # The old mapping lives as long as arrays of it do.
            os.ftruncate(self._memory_fd, size)
            self._memory = mmap.mmap(self._memory_fd, size)
        return self._memory

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            cucim_child.send(self._pipe, request)
        except OSError as problem:
            raise self._died() from problem
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            answer = cucim_child.receive(self._pipe)
        except TimeoutError as problem:
            self._process.kill()
            raise ProcessDied(f"silent for {_SILENT_S:g} s") from problem
        except OSError as problem:
            raise self._died() from problem
        if answer is None:
            raise self._died()
        return answer

    def _died(self) -> ProcessDied:
        try:
            code = self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code < 0:
            return ProcessDied(f"ended by {signal.Signals(-code).name}")
        said = os.pread(self._log_fd, 10_000, 0).decode(errors="replace").strip()
        return ProcessDied(f"status {code}, {said.splitlines()[-1] if said else 'no message'}")

    def _release(self) -> None:
        self._pipe.close()
        self._memory = None
        os.close(self._memory_fd)
        os.close(self._log_fd)


def _environment() -> dict[str, str]:
    """A child's, without what would change cuCIM."""
    handed = child_environment()
    return {name: value for name, value in handed.items() if name not in _NOT_HANDED_ON}


__all__ = ["HOW_TO_INSTALL", "DecoderProcess", "cucim_installed"]
