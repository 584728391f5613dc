"""Each bundle as three models: ``<bundle>-encoder``, ``<bundle>-aggregator``, ``<bundle>-slide``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from cmamil_sdk.engines.base import TENSORRT
from cmamil_sdk.errors import ModelNotFound

from ..models import LoadedModel, ModelTable
from ..status import FieldProblem, RequestInvalid
from .signatures import Signature, encoder_signature, slide_signature

Part = Literal["encoder", "aggregator", "slide"]

_PARTS: tuple[Part, ...] = get_args(Part)
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class ServedModel:
    """One part of a bundle as a model of its own."""

    loaded: LoadedModel
    part: Part

    @property
    def name(self) -> str:
        """``<bundle>-<part>``."""
        return f"{self.loaded.bundle.manifest.name}-{self.part}"

    @property
    def version(self) -> str:
        """The bundle's."""
        return self.loaded.bundle.manifest.version

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        if self.part == "aggregator":
            return self.loaded.aggregator
        manifest = self.loaded.bundle.manifest
        return encoder_signature(manifest) if self.part == "encoder" else slide_signature(manifest)

    @property
    def platform(self) -> str:
        """In the words of the protocol, which has none for reading slides."""
        if self.part == "slide":
            return "cmamil_slide"
        return "tensorrt_plan" if self._engine in TENSORRT else "onnx_onnxv1"

    def notes(self) -> dict[str, str]:
        """What else a client may want to know."""
        bundle = self.loaded.bundle
        notes = {
            "cmamil_bundle": bundle.label,
            "cmamil_bundle_sha256": bundle.sha256,
            "cmamil_recipe": bundle.manifest.recipe.model_dump_json(),
        }
        if self.part != "encoder":
            notes["cmamil_labels"] = json.dumps(bundle.manifest.labels)
        return notes

    @property
    def _engine(self) -> str:
        bundle = self.loaded.bundle
        return (bundle.encoder_info if self.part == "encoder" else bundle.aggregator_info).name


def find_model(models: ModelTable, name: str, version: str, *, field: str) -> ServedModel:
    """The model that a request names; without version the default one.

    Args:
        models: those loaded.
        name: of the model; of no bundle.
        version: of the bundle, or empty.
        field: where the request has the name, for messages.

    Raises:
        RequestInvalid: the name is empty.
        ModelNotFound: no such model, or not in this version.
        ModelNotReady: it is still loading, or all are.
    """
    if not name:
        raise RequestInvalid([FieldProblem(field, "must name a model")])
    for part in _PARTS:
        bundle = name.removesuffix(f"-{part}")
        loaded = models.lookup(bundle, version) if bundle != name else None
        if loaded is not None:
            return ServedModel(loaded, part)
    served = [ServedModel(loaded, part) for loaded in models.all() for part in _PARTS]
    asked = f"{name} of version {version}" if version else name
    known = ", ".join(f"{model.name} ({model.version})" for model in served)
    raise ModelNotFound(f"This server has no model {asked[:_SHOWN_CHARACTERS]!r}; it has {known}.")


def versions(models: ModelTable, name: str) -> list[str]:
    """All versions of the model ``name``, in the order of the configuration."""
    served = [ServedModel(loaded, part) for loaded in models.all() for part in _PARTS]
    return [model.version for model in served if model.name == name]


__all__ = ["Part", "ServedModel", "find_model", "versions"]
