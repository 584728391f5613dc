"""The models of a server: which there are, which of several versions is meant, and who uses them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import cast

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.golden import read_golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest
from cmamil_sdk.bundle.verify import read_manifest
from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.engines.choose import known_precision
from cmamil_sdk.engines.gated import GatedEncoder
from cmamil_sdk.engines.graphs import hashes_read
from cmamil_sdk.engines.parity import EncoderParity
from cmamil_sdk.errors import (
    BundleCorrupt,
    BundleUnsupported,
    ConfigInvalid,
    ModelNeeded,
    ModelNotFound,
    ModelNotReady,
)

from .admission import Pace
from .config import ServerConfig
from .messages import BundleTried, EncoderSpec, GraphSpec, ModelSpec
from .open_inference.signatures import Signature, aggregator_signature
from .status import FieldProblem, RequestInvalid

_NAME = re.compile(r"^models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?$")
_SHOWN_CHARACTERS = 200


@dataclass(eq=False)
class LoadedModel:
    """A verified bundle. Two of one name and version may be there for a while, one of them withdrawn.

    Attributes:
        number: what tasks for workers call it; no other model ever has it.
        bundle: what was verified.
        aggregator: the tensors of its aggregator.
        is_withdrawn: it is found no more; who uses it finishes.
        pace: how long its slides take.
    """

    number: int
    bundle: Bundle
    aggregator: Signature
    is_withdrawn: bool = False
    pace: Pace = field(default_factory=Pace)
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._unused.set()

    @property
    def resource(self) -> str:
        """``models/NAME/versions/VERSION``."""
        return resource_of(self.bundle.manifest)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keep the model loaded until the block ends. For the event loop only.

        Raises:
            ModelNotFound: it was withdrawn after it had been found, and nobody keeps it any more.
        """
        if self.is_withdrawn and not self._users:
            raise ModelNotFound(f"{self.resource} was unloaded; ask for another version.")
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def unused(self) -> None:
        """Wait until nobody uses the model."""
        await self._unused.wait()

    def spec(self) -> ModelSpec:
        """What a worker needs to load the model."""
        return ModelSpec(self.number, self._encoder_spec(), self._aggregator_spec())

    def _encoder_spec(self) -> EncoderSpec:
        info = self.bundle.encoder_info
        graph, hashes = self._graph(ENCODER_GRAPH, info)
        return EncoderSpec(
            graph=graph, hashes=hashes, engine=info, recipe=self.bundle.manifest.recipe
        )

    def _aggregator_spec(self) -> GraphSpec:
        info = self.bundle.aggregator_info
        graph, hashes = self._graph(AGGREGATOR_GRAPH, info)
        return GraphSpec(graph=graph, hashes=hashes, engine=info)

    def _graph(self, name: str, info: EngineInfo) -> tuple[str, dict[str, str]]:
        """A graph in fp32, and the hashes of what is read of it in the engine's precision."""
        graph, precision = self.bundle.root / name, known_precision(info.precision)
        return str(graph), hashes_read(graph, precision, self.bundle.manifest.hashes)


class ModelState(Enum):
    """Whether a model answers, or not yet, or no more."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"


@dataclass(frozen=True)
class ListedModel:
    """A model as lists show it; ``sha256`` is that of the bundle's manifest."""

    manifest: Manifest
    sha256: str
    state: ModelState
    is_default: bool = False


@dataclass(frozen=True)
class _Contents:
    """What a table holds at one moment; threads may read it while it is exchanged for another.

    Attributes:
        ready: in the order in which they were given; None before the first.
        defaults: version by name, where one was chosen.
        loading: the one that is being loaded.
        unloading: withdrawn, and still in use.
    """

    ready: tuple[LoadedModel, ...] | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)
    loading: ListedModel | None = None
    unloading: tuple[LoadedModel, ...] = ()

    def versions(self, name: str) -> list[LoadedModel]:
        """All versions of a model, the default last."""
        chosen = self.defaults.get(name)
        found = [m for m in self.ready or () if m.bundle.manifest.name == name]
        return sorted(found, key=lambda m: m.bundle.manifest.version == chosen)


class ModelTable:
    """The models; empty and not ready until :meth:`fill`. Threads may look things up in it."""

    def __init__(self) -> None:
        self._contents = _Contents()

    def fill(self, models: Sequence[LoadedModel]) -> None:
        """Make the models available; of several versions the last is the default."""
        self._contents = _Contents(tuple(models))

    def all(self) -> tuple[LoadedModel, ...]:
        """Every model that is ready, in the order in which they were given.

        Raises:
            ModelNotReady: the first are still loading.
        """
        if self._contents.ready is None:
            raise ModelNotReady("The server is still loading its models; try again in a moment.")
        return self._contents.ready

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Every model that is ready; empty while the first load."""
        return self._contents.ready or ()

    def listed(self) -> list[ListedModel]:
        """Every model with its state; those that load or unload last.

        Raises:
            ModelNotReady: the first are still loading.
        """
        self.all()
        contents = self._contents
        ready = map(self.shown, contents.ready or ())
        loading = [] if contents.loading is None else [contents.loading]
        return [*ready, *loading, *(_listed(m, ModelState.UNLOADING) for m in contents.unloading)]

    def shown(self, model: LoadedModel) -> ListedModel:
        """A model that is ready, as lists show it."""
        return _listed(model, ModelState.READY, self.is_default(model))

    def is_default(self, model: LoadedModel) -> bool:
        """Whether the name of ``model`` alone means this version."""
        return self._contents.versions(model.bundle.manifest.name)[-1:] == [model]

    def find(self, resource: str, *, field: str) -> LoadedModel:
        """The model that a request means; of several versions the default.

        Args:
            resource: ``models/NAME`` or ``models/NAME/versions/VERSION``; empty: the only name.
            field: where the request has it, for messages.

        Raises:
            RequestInvalid: not such a name, or empty where there are several models.
            ModelNotFound: no such model.
            ModelNotReady: it is still loading, or all are.
        """
        models = self.all()
        names = ", ".join(model.resource for model in models)
        if not resource:
            first, *others = dict.fromkeys(model.bundle.manifest.name for model in models)
            if others:
                raise RequestInvalid([FieldProblem(field, f"must name one of {names}")])
            return self._contents.versions(first)[-1]
        match = _NAME.match(resource)
        if match is None:
            problem = "must read models/NAME or models/NAME/versions/VERSION"
            raise RequestInvalid([FieldProblem(field, problem)])
        found = self.lookup(match["name"], match["version"] or "")
        if found is None:
            raise ModelNotFound(
                f"This server has no {resource[:_SHOWN_CHARACTERS]!r}; it has {names}."
            )
        return found

    def find_version(self, resource: str, *, field: str) -> LoadedModel:
        """As :meth:`find`, of a name that says the version."""
        match = _NAME.match(resource)
        if match is None or match["version"] is None:
            raise RequestInvalid([FieldProblem(field, "must read models/NAME/versions/VERSION")])
        return self.find(resource, field=field)

    def lookup(self, name: str, version: str) -> LoadedModel | None:
        """A model by its bundle's name and version, or the default where that is empty; None: unknown.

        Raises:
            ModelNotReady: it is still loading, or all are.
        """
        self.all()
        contents = self._contents
        for model in reversed(contents.versions(name)):
            if version in ("", model.bundle.manifest.version):
                return model
        coming = None if contents.loading is None else contents.loading.manifest
        if coming is not None and name == coming.name and version in ("", coming.version):
            raise ModelNotReady(f"{resource_of(coming)} is still loading; try again in a moment.")
        return None

    def is_unloading(self, manifest: Manifest) -> bool:
        """Whether a model of this name and version is still in use, and going."""
        wanted = resource_of(manifest)
        return any(model.resource == wanted for model in self._contents.unloading)

    @contextmanager
    def loading(self, manifest: Manifest, sha256: str) -> Iterator[None]:
        """List a model as loading until the block ends; one at a time."""
        listed = ListedModel(manifest, sha256, ModelState.LOADING)
        self._contents = replace(self._contents, loading=listed)
        try:
            yield
        finally:
            self._contents = replace(self._contents, loading=None)

    def add(self, model: LoadedModel) -> None:
        """Make a further model available; the default of its name stays what it is."""
        versions = self._contents.versions(model.bundle.manifest.name)
        self._contents = replace(self._contents, ready=(*self.loaded(), model), loading=None)
        self.set_default(versions[-1] if versions else model)

    def set_default(self, model: LoadedModel) -> None:
        """Have the name of ``model`` alone mean this version."""
        manifest = model.bundle.manifest
        defaults = {**self._contents.defaults, manifest.name: manifest.version}
        self._contents = replace(self._contents, defaults=defaults)

    def withdraw(self, model: LoadedModel) -> None:
        """Let no further request find a model.

        Raises:
            ModelNeeded: it is the default of several versions, or the only model.
        """
        ready = tuple(other for other in self.loaded() if other is not model)
        if not ready:
            raise ModelNeeded(
                f"{model.resource} is the only model of this server; load another before."
            )
        others = len(self._contents.versions(model.bundle.manifest.name)) - 1
        if others and self.is_default(model):
            raise ModelNeeded(
                f"{model.resource} is what models/{model.bundle.manifest.name} means; make another "
                "version the default before."
            )
        model.is_withdrawn = True
        unloading = (*self._contents.unloading, model)
        self._contents = replace(self._contents, ready=ready, unloading=unloading)

    def forget(self, model: LoadedModel) -> None:
        """List a withdrawn model no longer."""
        unloading = tuple(other for other in self._contents.unloading if other is not model)
        self._contents = replace(self._contents, unloading=unloading)


def resource_of(manifest: Manifest) -> str:
    """``models/NAME/versions/VERSION``."""
    return f"models/{manifest.name}/versions/{manifest.version}"


def load_model(path: Path, number: int, config: ServerConfig, tried: BundleTried) -> LoadedModel:
    """Load the aggregator of a bundle that passed its trial; the workers load the encoder.

    What is read here is compared with the manifest, and the manifest with that of the trial.

    Raises:
        BundleUnsupported: it takes tissue from mask files, which a server is not given.
        BundleCorrupt: it changed since it was tried.
        CmamilError: as :meth:`Bundle.load`.
    """
    manifest, sha256 = read_manifest(path)
    if sha256 != tried.sha256:
        raise BundleCorrupt(f"{path} changed while it was loaded; load it again.")
    if manifest.recipe.tissue.method == "mask":
        raise BundleUnsupported(
            f"The bundle {path} takes tissue from mask files, which a server is not given; "
            "use `cmamil predict --tissue-masks`."
        )
    golden = read_golden(path, manifest)
    signature = aggregator_signature(manifest, golden)
    bundle = Bundle.of_graphs(
        path,
        manifest,
        GatedEncoder(cast(Engine, _Elsewhere(tried.encoder)), EncoderParity(**tried.parity)),
        golden=golden,
        sha256=sha256,
        callers=1,
        max_attention_mib=config.max_attention_mib,
        hashes=manifest.hashes,
    )
    bundle.release_encoder()
    return LoadedModel(number, bundle, signature)


def load_models(config: ServerConfig, tried: Sequence[BundleTried]) -> list[LoadedModel]:
    """Verify and load every bundle of the configuration, all of which passed their trials.

    Raises:
        ConfigInvalid: two bundles have the same name and version.
        CmamilError: as :func:`load_model`.
    """
    models: list[LoadedModel] = []
    for number, (path, passed) in enumerate(zip(config.bundles, tried, strict=True)):
        model = load_model(path, number, config, passed)
        for other in models:
            if other.resource == model.resource:
                raise ConfigInvalid(
                    f"The bundles {other.bundle.root} and {path} are both {model.resource}; "
                    "name one of them."
                )
        models.append(model)
    return models


@dataclass(frozen=True)
class _Elsewhere:
    """An encoder that other processes run, as far as a bundle looks at it."""

    info: EngineInfo

    def close(self) -> None:
        """There is nothing to close here."""


def _listed(model: LoadedModel, state: ModelState, is_default: bool = False) -> ListedModel:
    return ListedModel(model.bundle.manifest, model.bundle.sha256, state, is_default)


__all__ = [
    "ListedModel",
    "LoadedModel",
    "ModelState",
    "ModelTable",
    "load_model",
    "load_models",
    "resource_of",
]
