"""What the server and its workers say to each other.

The server unpickles of a worker's answers no classes but those listed here, and nothing that a client
sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmamil_sdk.child_pipe import HEADER, Failed, KnownClasses, frame
from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.features.encode import EncodedBatch
from cmamil_sdk.slides.base import Level, SlideFacts
from cmamil_sdk.slides.open import ReaderName
from cmamil_sdk.tiling.geometry import OwnLevel, ReadGeometry
from cmamil_sdk.tiling.plan import PlannedScale, TileBatch, TilePlan
from cmamil_sdk.tiling.recipe import Scale, TileSample, TilingRecipe, TissueRecipe

from .paths import SlideRef

MAX_REPLY_BYTES = 2**28
"""A worker that announces more than this is taken for broken (a plan of 10^6 tiles needs 2^26)."""


@dataclass(frozen=True)
class GraphSpec:
    """One graph of a model: the file in fp32, sha256 by name of what is read of it in the engine's
    precision, from the manifest, and the engine that passed its gate in the server.
    """

    graph: str
    hashes: Mapping[str, str]
    engine: EngineInfo

    @property
    def key(self) -> tuple[tuple[str, ...], str]:
        """Graphs of one key share an engine."""
        return tuple(self.hashes.values()), self.engine.label


@dataclass(frozen=True)
class EncoderSpec(GraphSpec):
    """One model's encoder, and the recipe it belongs to."""

    recipe: TilingRecipe


@dataclass(frozen=True)
class ModelSpec:
    """What a worker needs of one model, which tasks name by ``number``: no other ever has it.

    The aggregator is loaded when it is first asked for: few servers are sent bags.
    """

    number: int
    encoder: EncoderSpec
    aggregator: GraphSpec


@dataclass(frozen=True)
class WorkerSetup:
    """First message to a worker; ``parent_pid`` must still be its parent."""

    parent_pid: int
    models: tuple[ModelSpec, ...]
    reader: ReaderName
    memory_mib: int
    open_slides: int
    max_tiles: int
    max_slide_pixels: int
    max_image_pixels: int
    max_levels: int


@dataclass(frozen=True)
class TryBundle:
    """The one question to a process that tries a bundle; answered with :class:`BundleTried`.

    ``parent_pid`` must still be its parent; the others are those of ``Bundle.load``.
    """

    parent_pid: int
    path: str
    engine: str
    device: str
    precision: str
    allow_failed_parity: bool


@dataclass(frozen=True)
class ReadFacts:
    """Ask what a slide is; answered with :class:`SlideFacts`."""

    slide: SlideRef
    mpp: float | None


@dataclass(frozen=True)
class MakePlan:
    """Ask for the tiles of a slide; answered with :class:`Planned`. ``model``: its number."""

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


@dataclass(frozen=True)
class AddModel:
    """Ask for a further model to be loaded and tried; answered with :class:`ModelAdded`."""

    spec: ModelSpec


@dataclass(frozen=True)
class DropModel:
    """Ask for the memory of a model; answered with :class:`ModelDropped`, known or not."""

    model: int


SlideTask = ReadFacts | MakePlan | EncodeTiles
Task = SlideTask | RunGraph | AddModel | DropModel


@dataclass(frozen=True)
class EncodeTogether:
    """Ask for the features of batches that share calls of one encoder; answered with :class:`Parts`."""

    tasks: tuple[EncodeTiles, ...]


def described(task: Task) -> str:
    """What a task was, as messages say it."""
    match task:
        case RunGraph():
            return f"Running the {task.graph} on the tensors of a request"
        case AddModel():
            return "Loading the model"
        case DropModel():
            return "Unloading the model"
    return f"Reading {task.slide.shown}"


@dataclass(frozen=True)
class Ready:
    """A worker's first answer: the engine of each encoder, by the number of its model."""

    engines: dict[int, EngineInfo]


@dataclass(frozen=True)
class ModelAdded:
    """A further model is loaded; the engine of its encoder."""

    engine: EngineInfo


@dataclass(frozen=True)
class ModelDropped:
    """A model is no longer there."""


@dataclass(frozen=True)
class BundleTried:
    """A bundle passed: sha256 of its manifest, its encoder's engine, fields of its ``EncoderParity``."""

    sha256: str
    encoder: EngineInfo
    parity: dict[str, Any]


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


Done = SlideFacts | Planned | EncodedBatch | GraphOutputs | ModelAdded | ModelDropped
Reply = Ready | Done | BundleTried | Failed


@dataclass(frozen=True)
class Parts:
    """The answer to each task of :class:`EncodeTogether`, in their order."""

    replies: tuple[EncodedBatch | Failed, ...]


_ALLOWED = KnownClasses(
    (
        BundleTried,
        EncodedBatch,
        EngineInfo,
        Failed,
        GraphOutputs,
        Level,
        ModelAdded,
        ModelDropped,
        OwnLevel,
        Parts,
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
)


def parse_reply(body: bytes) -> Reply | Parts:
    """A worker's answer.

    Raises:
        pickle.UnpicklingError: it holds anything but the classes of this module.
    """
    reply: Reply | Parts = _ALLOWED.unpickled(body)
    return reply


__all__ = [
    "HEADER",
    "MAX_REPLY_BYTES",
    "AddModel",
    "BundleTried",
    "Done",
    "DropModel",
    "EncodeTiles",
    "EncodeTogether",
    "EncoderSpec",
    "Failed",
    "GraphOutputs",
    "GraphSpec",
    "MakePlan",
    "ModelAdded",
    "ModelDropped",
    "ModelSpec",
    "Parts",
    "Planned",
    "ReadFacts",
    "Ready",
    "Reply",
    "RunGraph",
    "SlideTask",
    "Task",
    "TryBundle",
    "WorkerSetup",
    "described",
    "frame",
    "parse_reply",
]
