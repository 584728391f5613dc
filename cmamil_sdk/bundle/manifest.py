"""What a bundle says of itself (docs/bundle.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cmamil_sdk import __version__
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.tiling.recipe import TilingRecipe

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ENCODER_GRAPH = "encoder.onnx"
AGGREGATOR_GRAPH = "aggregator.onnx"
GOLDEN = "golden.npz"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class FileEntry(BaseModel):
    """Hash and size of one file of the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """The contents of ``manifest.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    sdk_version: str = __version__
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    files: dict[str, FileEntry]
    model_kind: str
    hyperparameters: dict[str, Any]
    labels: tuple[str, ...] = Field(min_length=2)
    hierarchy: Hierarchy | None = Field(None, description="of a model with coarse labels")
    recipe: TilingRecipe
    encoder: EncoderInfo
    temperature: float = Field(gt=0)
    coarse_temperature: float | None = Field(None, gt=0, description="of the coarse logits")
    opset: int
    precision: str
    index_inputs: tuple[str, ...] = Field(description="index arrays the aggregator reads")
    parity: dict[str, float]
    training: dict[str, Any] = Field(description="fold, seed and metrics of the training run")

    @field_validator("files")
    @classmethod
    def _all_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        needed = {ENCODER_GRAPH, AGGREGATOR_GRAPH, GOLDEN}
        if set(files) != needed:
            raise ValueError(f"must list exactly {', '.join(sorted(needed))}")
        return files

    @model_validator(mode="after")
    def _hierarchy_fits(self) -> Self:
        if self.hierarchy is not None:
            self.hierarchy.check(self.labels)
        return self


__all__ = [
    "AGGREGATOR_GRAPH",
    "ENCODER_GRAPH",
    "GOLDEN",
    "MANIFEST",
    "SCHEMA_VERSION",
    "FileEntry",
    "Manifest",
]
