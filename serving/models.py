"""The bundles a server has loaded, by resource name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.bundle.golden import read_golden
from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH
from cmamil_sdk.engines.base import EngineInfo
from cmamil_sdk.engines.choose import known_precision
from cmamil_sdk.engines.graphs import graph_in
from cmamil_sdk.errors import BundleUnsupported, ConfigInvalid, ModelNotFound, ModelNotReady

from .config import ServerConfig
from .messages import EncoderSpec, GraphSpec
from .open_inference.signatures import Signature, aggregator_signature
from .status import FieldProblem, RequestInvalid

_NAME = re.compile(r"^models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?$")


@dataclass(frozen=True)
class LoadedModel:
    """A verified bundle.

    Attributes:
        number: its place in :attr:`WorkerSetup.encoders` and in :attr:`WorkerSetup.aggregators`.
        bundle: what was verified.
        aggregator: the tensors of its aggregator.
    """

    number: int
    bundle: Bundle
    aggregator: Signature

    @property
    def resource(self) -> str:
        """``models/NAME/versions/VERSION``."""
        manifest = self.bundle.manifest
        return f"models/{manifest.name}/versions/{manifest.version}"

    def encoder_spec(self) -> EncoderSpec:
        """What a worker needs to load the encoder."""
        info = self.bundle.encoder_info
        graph, sha256 = self._graph(ENCODER_GRAPH, info)
        return EncoderSpec(
            graph=graph, sha256=sha256, engine=info, recipe=self.bundle.manifest.recipe
        )

    def aggregator_spec(self) -> GraphSpec:
        """What a worker needs to load the aggregator."""
        info = self.bundle.aggregator_info
        graph, sha256 = self._graph(AGGREGATOR_GRAPH, info)
        return GraphSpec(graph=graph, sha256=sha256, engine=info)

    def _graph(self, name: str, info: EngineInfo) -> tuple[str, str]:
        """A graph in fp32, and the sha256 of that in the engine's precision."""
        graph = self.bundle.root / name
        used = graph_in(graph, known_precision(info.precision))
        return str(graph), self.bundle.manifest.files[used.name].sha256


class ModelTable:
    """The models; empty and not ready until :meth:`fill`."""

    def __init__(self) -> None:
        self._models: tuple[LoadedModel, ...] | None = None

    def fill(self, models: Sequence[LoadedModel]) -> None:
        """Make the models available."""
        self._models = tuple(models)

    def all(self) -> tuple[LoadedModel, ...]:
        """Every model, in the order of the configuration.

        Raises:
            ModelNotReady: they are still loading.
        """
        if self._models is None:
            raise ModelNotReady("The server is still loading its models; try again in a moment.")
        return self._models

    def loaded(self) -> tuple[LoadedModel, ...]:
        """Every model that is ready; empty while they load."""
        return self._models or ()

    def find(self, resource: str, *, field: str) -> LoadedModel:
        """The model that a request means; of several versions the one configured last.

        Args:
            resource: ``models/NAME`` or ``models/NAME/versions/VERSION``; empty: the only model.
            field: where the request has it, for messages.

        Raises:
            RequestInvalid: not such a name, or empty where there are several models.
            ModelNotFound: no such model.
            ModelNotReady: the models are still loading.
        """
        models = self.all()
        names = ", ".join(model.resource for model in models)
        if not resource:
            if len(models) == 1:
                return models[0]
            raise RequestInvalid([FieldProblem(field, f"must name one of {names}")])
        match = _NAME.match(resource)
        if match is None:
            problem = "must read models/NAME or models/NAME/versions/VERSION"
            raise RequestInvalid([FieldProblem(field, problem)])
        for model in reversed(models):
            manifest = model.bundle.manifest
            if match["name"] == manifest.name and match["version"] in (None, manifest.version):
                return model
        raise ModelNotFound(f"This server has no {resource[:200]!r}; it has {names}.")


def load_models(config: ServerConfig) -> list[LoadedModel]:
    """Verify and load every bundle of the configuration; takes seconds.

    Raises:
        ConfigInvalid: two bundles have the same name and version.
        BundleUnsupported: a bundle takes tissue from mask files, which a server is not given.
        CmamilError: as :meth:`Bundle.load`.
    """
    models: list[LoadedModel] = []
    for number, path in enumerate(config.bundles):
        bundle = Bundle.load(
            path,
            engine=config.engine,
            device=config.device,
            precision=config.precision,
            callers=1,
            allow_failed_parity=config.allow_failed_parity,
            max_attention_mib=config.max_attention_mib,
        )
        bundle.release_encoder()  # tiles are encoded in the workers' processes
        if bundle.manifest.recipe.tissue.method == "mask":
            raise BundleUnsupported(
                f"The bundle {path} takes tissue from mask files, which a server is not given; "
                "use `cmamil predict --tissue-masks`."
            )
        signature = aggregator_signature(bundle.manifest, read_golden(path, bundle.manifest))
        model = LoadedModel(number, bundle, signature)
        for other in models:
            if other.resource == model.resource:
                raise ConfigInvalid(
                    f"The bundles {other.bundle.root} and {path} are both {model.resource}; "
                    "name one of them."
                )
        models.append(model)
    return models


__all__ = ["LoadedModel", "ModelTable", "load_models"]
