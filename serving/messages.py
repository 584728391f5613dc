"""What the server and its workers say to each other, and how it is framed.

A worker's frame is a 4-byte little-endian length and a pickle. The server's has its arrays outside the
pickle, so that tensors of many MiB are not copied: lengths of the pickle and of each array, then all of
them. Workers trust the server, but it does not trust them: they parse hostile files, so their answers
are unpickled with a list of the only classes that may appear in them. Nothing that a client sent is
ever unpickled.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.slides.open import ReaderName
from cmamil_sdk.tiling.geometry import OwnLevel, ReadGeometry
from cmamil_sdk.tiling.plan import PlannedScale, TileBatch, TilePlan
from cmamil_sdk.tiling.recipe import Scale, TileSample, TilingRecipe, TissueRecipe

from .paths import SlideRef

HEADER = struct.Struct("<I")
_TASK_HEADER = struct.Struct("<II")  # bytes of the pickle, number of arrays
_SIZE = struct.Struct("<Q")

MAX_REPLY_BYTES = 2**28
"""A worker that announces more than this is taken for broken (a plan of 10^6 tiles needs 2^26)."""


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a model: the file in fp32, the sha256 of that in the engine's precision from the
    manifest, and the engine that passed its gate in the server.
    """

    graph: str
    sha256: str
    engine: EngineInfo

    @property
    def key(self) -> tuple[str, str]:
        """Graphs of one key share an engine."""
        return self.sha256, self.engine.label


@dataclass(frozen=True)
class EncoderSpec(GraphSpec):
    """One model's encoder, and the recipe it belongs to."""

    recipe: TilingRecipe


@dataclass(frozen=True)
class WorkerSetup:
    """First message to a worker; ``parent_pid`` must still be its parent.

    ``encoders`` and ``aggregators`` have one entry per model, by its number.
    """

    parent_pid: int
    encoders: tuple[EncoderSpec, ...]
    reader: ReaderName
    memory_mib: int
    open_slides: int
    max_tiles: int
    max_slide_pixels: int
    max_image_pixels: int
    max_levels: int
    aggregators: tuple[GraphSpec, ...] = ()


@dataclass(frozen=True)
class ReadFacts:
    """Ask what a slide is; answered with :class:`SlideFacts`."""

    slide: SlideRef
    mpp: float | None


@dataclass(frozen=True)
class MakePlan:
    """Ask for the tiles of a slide; answered with :class:`Planned`. ``model``: number of encoder."""

    slide: SlideRef
    mpp: float | None
    model: int


@dataclass(frozen=True)
class EncodeTiles:
    """Ask for the features of a batch; answered with :class:`EncodedBatch`."""

    slide: SlideRef
    mpp: float | None
    model: int
    batch: TileBatch


@dataclass(frozen=True)
class RunGraph:
    """Ask for the outputs of a model's graph; answered with :class:`GraphOutputs`.

    ``part`` comes back in the answer: parts of one request are done in any order.
    """

    model: int
    graph: Literal["encoder", "aggregator"]
    inputs: Mapping[str, npt.NDArray[Any]]
    part: int = 0


Task = ReadFacts | MakePlan | EncodeTiles | RunGraph


def described(task: Task) -> str:
    """What a task was, as messages say it."""
    if isinstance(task, RunGraph):
        return f"Running the {task.graph} on the tensors of a request"
    return f"Reading {task.slide.shown}"


@dataclass(frozen=True)
class Ready:
    """A worker's first answer: the engine of each encoder."""

    engines: tuple[EngineInfo, ...]


@dataclass(frozen=True)
class Planned:
    """A plan and the seconds it took to open the slide and to find its tissue."""

    plan: TilePlan
    seconds_open: float
    seconds_tissue: float


@dataclass(frozen=True)
class GraphOutputs:
    """The named outputs of a graph, float32, for part ``part`` of a request."""

    part: int
    outputs: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Failed:
    """An error leaf's reason and message; ``details`` is a traceback for the log, or empty."""

    reason: str
    message: str
    details: str = ""


Reply = Ready | SlideFacts | Planned | EncodedBatch | GraphOutputs | Failed

_ALLOWED = {
    (cls.__module__, cls.__qualname__): cls
    for cls in (
        EncodedBatch,
        EngineInfo,
        Failed,
        GraphOutputs,
        Level,
        OwnLevel,
        PlannedScale,
        Planned,
        ReadGeometry,
        Ready,
        Scale,
        SlideFacts,
        TileBatch,
        TilePlan,
        TileSample,
        TilingRecipe,
        TissueRecipe,
    )
}
_NUMPY = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ReplyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a worker sent {module}.{name}")


def task_frame(message: object) -> list[bytes | memoryview]:
    """A message of the server, in parts to send one after the other; arrays are views, not copies."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    arrays = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(array.nbytes) for array in arrays)
    return [_TASK_HEADER.pack(len(body), len(arrays)) + sizes + body, *arrays]


def frame(message: object) -> bytes:
    """A worker's message with its length in front."""
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


def receive(pipe: socket.socket) -> Any:
    """The server's next message, or None once it has closed the socket. For workers only."""
    try:
        body_bytes, arrays = _TASK_HEADER.unpack(_read(pipe, _TASK_HEADER.size))
        sizes = [_SIZE.unpack(_read(pipe, _SIZE.size))[0] for _ in range(arrays)]
        body = _read(pipe, body_bytes)
        return pickle.loads(body, buffers=[_read(pipe, size) for size in sizes])
    except EOFError:
        return None


def _read(pipe: socket.socket, size: int) -> bytearray:
    """So many bytes; EOFError once the server has closed the socket."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        read = pipe.recv_into(left)
        if not read:
            raise EOFError
        left = left[read:]
    return data


def parse_reply(body: bytes) -> Reply:
    """A worker's answer.

    Raises:
        pickle.UnpicklingError: it holds anything but the classes of this module.
    """
    reply: Reply = _ReplyUnpickler(io.BytesIO(body)).load()
    return reply


__all__ = [
    "HEADER",
    "MAX_REPLY_BYTES",
    "EncodeTiles",
    "EncoderSpec",
    "Failed",
    "GraphOutputs",
    "GraphSpec",
    "MakePlan",
    "Planned",
    "ReadFacts",
    "Ready",
    "Reply",
    "RunGraph",
    "Task",
    "WorkerSetup",
    "described",
    "frame",
    "parse_reply",
    "receive",
    "task_frame",
]
