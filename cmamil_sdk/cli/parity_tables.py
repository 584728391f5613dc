"""The parity tables of ``cmamil export`` and ``cmamil verify``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmamil_sdk.cli.output import table

if TYPE_CHECKING:
    from cmamil_sdk.engines.base import EngineInfo
    from cmamil_sdk.engines.parity import EncoderParity

_FIGURES = ("cosine_mean", "cosine_worst", "centred_cosine_mean", "centred_cosine_worst")


def parity_text(
    encoder: Sequence[EncoderParity],
    aggregator: Mapping[str, float],
    absent: Mapping[str, str] | None = None,
) -> str:
    """Both tables: figures, gates and verdicts; ``absent`` says why an engine is not there."""
    from cmamil_sdk.engines.parity import AGGREGATOR_GATES

    rows = [[row.label, *_cells(row), "passed" if row.passed else "FAILED"] for row in encoder]
    rows += [[label, *[""] * len(_FIGURES), why] for label, why in (absent or {}).items()]
    header = ["encoder", *(name.replace("_", " ") for name in _FIGURES), "verdict"]
    gates = AGGREGATOR_GATES["fp32"]
    differences = [
        [name, f"{value:.3g}", gates[name], "passed" if value <= gates[name] else "FAILED"]
        for name, value in aggregator.items()
        if name in gates
    ]
    below = table(["aggregator: parity with the eager model", "found", "gate", ""], differences)
    return f"{table(header, rows)}\n\n{below}"


def _cells(row: EncoderParity) -> list[str]:
    """Each figure, with its gate where it has one."""
    return [
        f"{getattr(row, name):.6f}" + (f" (>= {row.gate[name]:g})" if name in row.gate else "")
        for name in _FIGURES
    ]


def parity_document(rows: Iterable[EncoderParity]) -> dict[str, Any]:
    """Rows of the encoder's table for a JSON document, by label."""
    return {
        row.label: {**row.model_dump(mode="json"), "gate": dict(row.gate), "passed": row.passed}
        for row in rows
    }


def engine_document(info: EngineInfo) -> dict[str, Any]:
    """The engine in use, for a JSON document."""
    return {"engine": info.label, "engine_reason": info.reason}


__all__ = ["engine_document", "parity_document", "parity_text"]
