"""A plug-in's slide in a process of its own: what crashes its native library ends that process alone.

This is the reader's end of the pipe; :mod:`cmamil_sdk.slides.isolated_child` is the other.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cmamil_sdk.child_pipe import child_environment, how_it_ended
from cmamil_sdk.errors import DecoderCrashed

if TYPE_CHECKING:
    from cmamil_sdk.slides.plugins import VendorSlide

UInt8 = npt.NDArray[np.uint8]

_CHILD = "cmamil_sdk.slides.isolated_child"
_PATIENCE_S = 120.0
_LEAVE_S = 5.0


@dataclass(frozen=True)
class Description:
    """What the library says of a slide, by OpenSlide's names."""

    properties: dict[str, str]
    dimensions: tuple[int, int]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]


@dataclass(frozen=True)
class Failure:
    """An exception of the library, told in words because its class may exist in its process only."""

    said: str
    is_import: bool

    def error(self) -> Exception:
        """The exception to raise in its stead."""
        return ImportError(self.said) if self.is_import else LibraryFailed(self.said)


class LibraryFailed(Exception):
    """The library raised something; says its class and words."""


class IsolatedSlide:
    """A :class:`~cmamil_sdk.slides.plugins.VendorSlide` that asks a process.

    Raises:
        ImportError: the library is not installed.
        LibraryFailed: it raised something.
        DecoderCrashed: its process died, or was silent for two minutes and was ended.
    """

    def __init__(self, path: Path, opener: Callable[[Path], VendorSlide]) -> None:
        self._path = path
        self._pipe, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                # Ctrl-C in a terminal reaches the whole process group: the reader decides alone.
                start_new_session=True,
            )
        finally:
            theirs.close()
        try:
            self._described: Description = self._ask((opener, path))
        except BaseException:
            self.close()
            raise

    @property
    def properties(self) -> dict[str, str]:
        """Metadata by OpenSlide's names."""
        return self._described.properties

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0."""
        return self._described.dimensions

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, finest first."""
        return self._described.level_dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels that a pixel of each level spans."""
        return self._described.level_downsamples

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:
        """Pixels ``[height, width, channels]``; ``location`` in level-0 pixels."""
        pixels: UInt8 = self._ask((location, level, size))
        return pixels

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: object) -> Any:
        try:
            self._pipe.send(question)
            if not self._pipe.poll(_PATIENCE_S):
                self._process.kill()
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as problem:
            raise DecoderCrashed(
                f"The process that read {self._path} {how_it_ended(self._process.wait())}; the file is "
                "damaged, or its library is not for this machine: copy it again, or convert it to TIFF."
            ) from problem
        if isinstance(answer, Failure):
            raise answer.error()
        return answer


__all__ = ["Description", "Failure", "IsolatedSlide", "LibraryFailed"]
