"""How far a graph on an engine may be from its model: every gate of this package, and the measures.

The model in PyTorch, eager and in float32, is the one reference, never another engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cmamil_sdk.engines.base import Engine, EngineInfo
from cmamil_sdk.engines.choose import engine_precisions
from cmamil_sdk.engines.cuda import device_name
from cmamil_sdk.errors import ParityFailed
from cmamil_sdk.files import write_json
from cmamil_sdk.machine import processor_name

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_BATCH_TILES = 21
"""Of 16, 4 and 1, or more of the smaller: so each form in which OpenVINO has an encoder is measured."""

GATE_VERSION = 3
"""Counts up when a gate, the tiles that it is measured on, or their batches change."""

ENCODER_GATES: Mapping[str, Mapping[str, float]] = {
    "fp32": {"cosine_worst": 0.99999, "centred_cosine_worst": 0.9999},
    "bf16": {"cosine_worst": 0.995, "centred_cosine_mean": 0.995, "centred_cosine_worst": 0.99},
    "fp16": {"cosine_worst": 0.995, "centred_cosine_mean": 0.995, "centred_cosine_worst": 0.99},
    "int8": {"cosine_worst": 0.95},
}
"""Per precision, what the cosines of an encoder's features must reach."""

AGGREGATOR_GATES: Mapping[str, Mapping[str, float]] = {
    "fp32": {
        "aggregator_logits": 1e-3,
        "aggregator_attention": 1e-4,
        "aggregator_contribution": 1e-3,
    },
    "bf16": {
        "aggregator_logits": 1e-2,
        "aggregator_attention": 1e-3,
        "aggregator_contribution": 1e-2,
    },
    "fp16": {
        "aggregator_logits": 1e-2,
        "aggregator_attention": 1e-3,
        "aggregator_contribution": 1e-2,
    },
}
"""Per precision, what the absolute differences of an aggregator's outputs must not exceed."""

END_TO_END_GATES: Mapping[str, Mapping[str, float]] = {
    "int8": {"label_flips": 0, "auc_change": 0.005}
}
"""Per precision, what the answers on slides may differ in from those in fp32."""


@dataclass(frozen=True)
class EncoderReference:
    """Tiles ``[N, px, px, 3]`` uint8 and what the eager model makes of them, ``[N, D]`` float32."""

    tiles: UInt8
    features: Float32


class EncoderParity(BaseModel):
    """One row of the parity table: an engine and precision against the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    device: str
    precision: str
    version: str = Field(description="of the runtime")
    processor: str = Field(
        description="on which it was measured, and the precisions it computes in"
    )
    gate_version: int = GATE_VERSION
    tiles: int = Field(gt=0, description="that were compared")
    cosine_mean: float = Field(ge=-1.001, le=1.001)
    cosine_worst: float = Field(ge=-1.001, le=1.001)
    centred_cosine_mean: float = Field(ge=-1.001, le=1.001)
    centred_cosine_worst: float = Field(ge=-1.001, le=1.001)

    @property
    def label(self) -> str:
        """As :attr:`~cmamil_sdk.engines.base.EngineInfo.label`."""
        return f"{self.engine}-{self.device.split(':')[0]}-{self.precision}"

    @property
    def gate(self) -> Mapping[str, float]:
        """What each of the cosines named here must reach."""
        return ENCODER_GATES[self.precision]

    @property
    def missed(self) -> str:
        """The figures that miss their gate, in words; empty if it is passed."""
        return ", ".join(
            f"{name.replace('_', ' ')} {getattr(self, name):.6f} (gate {least:g})"
            for name, least in self.gate.items()
            if getattr(self, name) < least
        )

    @property
    def passed(self) -> bool:
        """Whether every figure reaches its gate."""
        return not self.missed


_Rows = TypeAdapter(list[EncoderParity])


def measure_encoder(engine: Engine, reference: EncoderReference) -> EncoderParity:
    """Compare an encoder on an engine with the reference, two or more tiles."""
    starts = range(0, len(reference.tiles), _BATCH_TILES)
    batches = [reference.tiles[start : start + _BATCH_TILES] for start in starts]
    parts = [engine.infer({"tiles": tiles})["features"] for tiles in batches]
    are_rows = all(part.ndim and part.shape[1:] == parts[0].shape[1:] for part in parts)
    found = np.concatenate(parts) if are_rows else parts[0]  # whose shape is not the reference's
    return EncoderParity(
        **_measured_on(engine.info),
        tiles=len(reference.tiles),
        **feature_cosines(reference.features, found),
    )


def stored_parity(path: Path, engine: Engine, reference: EncoderReference) -> EncoderParity:
    """What ``path`` says of this engine on this machine; else it is measured, and ``path`` says it."""
    known = _read_parities(path)
    where = _measured_on(engine.info)
    for parity in known:
        if parity.model_dump(include=set(where)) == where:
            return parity
    measured = measure_encoder(engine, reference)
    write_json(path, [row.model_dump(mode="json") for row in (*known, measured)])
    return measured


def _read_parities(path: Path) -> list[EncoderParity]:
    """Rows of a file beside a cached graph; none if it cannot be read."""
    try:
        return _Rows.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return []


def _measured_on(info: EngineInfo) -> dict[str, Any]:
    """What decides the figures, apart from the encoder."""
    processor = processor_name() if info.device == "cpu" else device_name(info.device)
    return {
        "engine": info.name,
        "device": info.device,
        "precision": info.precision,
        "version": info.version,
        "processor": f"{processor}, {', '.join(engine_precisions(info.name, info.device))}",
        "gate_version": GATE_VERSION,
    }


def feature_cosines(reference: Float32, found: Float32) -> dict[str, float]:
    """Cosine per tile of features ``[N, D]``, plain and after subtracting the mean feature.

    Plain cosine flatters, because all features share a large common part. What is NaN, or of another
    shape, counts as -1.
    """
    if found.shape != reference.shape:
        plain = centred = np.full(1, -1.0)
    else:
        mean = reference.mean(axis=0)
        plain = _cosine(reference, found)
        centred = _cosine(reference - mean, found - mean)
    return {
        "cosine_mean": float(plain.mean()),
        "cosine_worst": float(plain.min()),
        "centred_cosine_mean": float(centred.mean()),
        "centred_cosine_worst": float(centred.min()),
    }


def refuse_encoder(parity: EncoderParity, graph: str) -> None:
    """Refuse an encoder that misses its gate.

    Raises:
        ParityFailed: with the figures.
    """
    if not parity.passed:
        raise ParityFailed(
            f"{graph} on {parity.label} does not reproduce its model: {parity.missed}; "
            "use --precision auto, or another --engine."
        )


def missed_gates(report: Mapping[str, float], precision: str = "fp32") -> str:
    """The differences of an aggregator that exceed their gates, in words; empty if none does."""
    gates = AGGREGATOR_GATES[precision]
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g} (gate {gates[name]:g})"
        for name, value in report.items()
        if value > gates[name]
    )


def _cosine(a: Float32, b: Float32) -> npt.NDArray[np.float64]:
    left, right = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines: npt.NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(norms, 1e-12)
    return np.nan_to_num(cosines, nan=-1.0, posinf=-1.0, neginf=-1.0)


__all__ = [
    "AGGREGATOR_GATES",
    "ENCODER_GATES",
    "END_TO_END_GATES",
    "GATE_VERSION",
    "EncoderParity",
    "EncoderReference",
    "feature_cosines",
    "measure_encoder",
    "missed_gates",
    "refuse_encoder",
    "stored_parity",
]
