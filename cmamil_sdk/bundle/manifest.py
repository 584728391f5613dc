"""What a bundle says of itself (docs/bundle.md)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cmamil_sdk import __version__
from cmamil_sdk.bundle.plans import check_plan_files
from cmamil_sdk.bundle.precisions import PrecisionReport
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.graphs import STORED_PRECISIONS, graph_in, split_graphs
from cmamil_sdk.engines.parity import EncoderParity
from cmamil_sdk.files import FileEntry
from cmamil_sdk.hierarchy import Hierarchy
from cmamil_sdk.tiling.recipe import TilingRecipe

SCHEMA_VERSION = 5
MANIFEST = "manifest.json"
ENCODER_GRAPH = "encoder.onnx"
AGGREGATOR_GRAPH = "aggregator.onnx"
GOLDEN = "golden.npz"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


_LOWER_GRAPHS = (
    *("encoder.fp16.onnx", "aggregator.fp16.onnx", "encoder.int8.onnx"),
    *(path.name for path in split_graphs(Path(AGGREGATOR_GRAPH))),
)
"""An aggregator is never in int8, and in bf16 it is in two parts."""

Explanation = Literal["attention", "contribution"]


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
    coarse_temperature: float | None = Field(
        None, gt=0, description="of the coarse logits; None: the aggregator has none"
    )
    opset: int
    precision: str = Field(description="of the graphs that every bundle has")
    index_inputs: tuple[str, ...] = Field(description="index arrays the aggregator reads")
    attention_rows: int | None = Field(
        None,
        ge=1,
        description="rows of scores that attention between all tiles holds at once; None: all",
    )
    explanations: tuple[Explanation, ...] = Field(
        ("attention", "contribution"), description="what the aggregator says of each tile"
    )
    parity: dict[str, float] = Field(
        description="largest differences of the aggregator; before schema 3 of the encoder as well"
    )
    encoder_parity: tuple[EncoderParity, ...] = Field(
        (), description="the encoder on each engine and precision that there was at export"
    )
    precisions: tuple[PrecisionReport, ...] = Field(
        (), description="graphs in lower precisions, and how these were judged at export"
    )
    parity_failed: str = Field(
        "", description="what missed its gate, of a bundle exported with --force all the same"
    )
    training: dict[str, Any] = Field(
        description="fold, seed, metrics and slides_seen of the training run; of several folds each"
    )

    @field_validator("files")
    @classmethod
    def _all_files(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        needed = {ENCODER_GRAPH, AGGREGATOR_GRAPH, GOLDEN}
        if not needed <= set(files):
            raise ValueError(f"must list {', '.join(sorted(needed))}")
        check_plan_files(set(files) - needed - {*_LOWER_GRAPHS})
        return files

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each other file, by name."""
        return {name: entry.sha256 for name, entry in self.files.items()}

    @property
    def has_coarse_level(self) -> bool:
        """Whether the aggregator answers coarse classes; else a hierarchy's are sums of labels'."""
        return self.hierarchy is not None and self.coarse_temperature is not None

    @property
    def aggregator_outputs(self) -> list[str]:
        """Names of the aggregator's outputs, in order."""
        return aggregator_outputs(
            self.recipe.names, self.explanations, coarse=self.has_coarse_level
        )

    @model_validator(mode="after")
    def _lists_what_it_reports(self) -> Self:
        reported = {name for report in self.precisions for name in report.graphs}
        if not reported <= {*self.files}:
            raise ValueError("precisions must name graphs that files lists")
        return self

    @model_validator(mode="after")
    def _hierarchy_fits(self) -> Self:
        if self.hierarchy is not None:
            self.hierarchy.check(self.labels)
        return self


def own_graphs(root: Path, precision: Precision) -> tuple[str, ...]:
    """Names of the graphs of ``precision`` alone in a bundle's directory; of bf16, the aggregator's."""
    paths: tuple[Path, ...] = ()
    if precision == "bf16":
        paths = split_graphs(root / AGGREGATOR_GRAPH)
    elif precision in STORED_PRECISIONS:
        paths = tuple(
            graph_in(root / name, precision) for name in (ENCODER_GRAPH, AGGREGATOR_GRAPH)
        )
    return tuple(path.name for path in paths if path.is_file())


def aggregator_outputs(
    scales: Sequence[str], explanations: Sequence[Explanation], *, coarse: bool
) -> list[str]:
    """Names of an aggregator's outputs, in order; ``coarse`` adds those of the coarse level."""
    names = [
        "logits",
        *(["bias"] if "contribution" in explanations else []),
        "probabilities",
        *(f"attention_{s}" for s in scales if "attention" in explanations),
        *(f"contribution_{s}" for s in scales if "contribution" in explanations),
    ]
    return names + [f"coarse_{name}" for name in names] if coarse else names


__all__ = [
    "AGGREGATOR_GRAPH",
    "ENCODER_GRAPH",
    "GOLDEN",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Explanation",
    "FileEntry",
    "Manifest",
    "aggregator_outputs",
    "own_graphs",
]
