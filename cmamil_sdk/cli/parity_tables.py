"""The parity tables of ``cmamil export`` and ``cmamil verify``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmamil_sdk.cli.output import table
from cmamil_sdk.wording import counted

if TYPE_CHECKING:
    from cmamil_sdk.bundle.precisions import EndToEnd, PrecisionReport
    from cmamil_sdk.engines.base import EngineInfo
    from cmamil_sdk.engines.parity import EncoderParity

_FIGURES = ("cosine_mean", "cosine_worst", "centred_cosine_mean", "centred_cosine_worst")


def parity_text(
    encoder: Sequence[EncoderParity],
    aggregator: Mapping[str, float],
    absent: Mapping[str, str] | None = None,
) -> str:
    """Both tables: figures, gates and verdicts; ``absent`` says why an engine is not there."""
    rows = [[row.label, *_cells(row), "passed" if row.passed else "FAILED"] for row in encoder]
    rows += [[label, *[""] * len(_FIGURES), why] for label, why in (absent or {}).items()]
    header = ["encoder", *(name.replace("_", " ") for name in _FIGURES), "verdict"]
    return f"{table(header, rows)}\n\n{_aggregator_text(aggregator, 'fp32')}"


def precisions_text(reports: Sequence[PrecisionReport]) -> str:
    """What came of judging the lower precisions at export: their aggregators, and answers on slides."""
    parts = [_aggregator_text(r.aggregator, r.precision) for r in reports if r.aggregator]
    rows = [
        [report.precision, *_slide_cells(report.end_to_end), _verdict(report)]
        for report in reports
        if report.end_to_end is not None
    ]
    header = ["on slides", "engine", "slides", "held out", "cosine worst", "label flips"]
    if rows:
        parts.append(table([*header, "probability", "AUC", "in fp32", "verdict"], rows))
    calibrated = [r for r in reports if r.calibration_tiles]
    parts += [
        f"{r.precision} was calibrated on {r.calibration_tiles} tiles of "
        f"{counted(r.calibration_slides, 'slide')}"
        for r in calibrated
    ]
    return "\n\n".join(parts)


def _slide_cells(found: EndToEnd) -> list[str]:
    return [
        found.engine,
        str(found.slides),
        "yes" if found.held_out else "no",
        f"{found.tiles.cosine_worst:.4f}",
        str(found.label_flips),
        f"{found.probability_change:.2g}",
        *("-" if auc is None else f"{auc:.4f}" for auc in (found.auc, found.auc_fp32)),
    ]


def _verdict(report: PrecisionReport) -> str:
    from cmamil_sdk.engines.parity import END_TO_END_GATES

    if report.missed:
        return "FAILED"
    return "passed" if report.precision in END_TO_END_GATES else ""


def _aggregator_text(differences: Mapping[str, float], precision: str) -> str:
    from cmamil_sdk.engines.parity import AGGREGATOR_GATES

    gates = AGGREGATOR_GATES[precision]
    failed = "stays in fp32" if precision == "bf16" else "FAILED"
    rows = [
        [name, f"{value:.3g}", gates[name], "passed" if value <= gates[name] else failed]
        for name, value in differences.items()
        if name in gates
    ]
    lead = "aggregator" if precision == "fp32" else f"aggregator in {precision}"
    return table([f"{lead}: parity with the eager model", "found", "gate", ""], rows)


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


__all__ = ["engine_document", "parity_document", "parity_text", "precisions_text"]
