"""Graphs of a bundle in lower precisions: written, judged, and refused where they miss their gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH, ENCODER_GRAPH, Manifest, own_graphs
from cmamil_sdk.bundle.precisions import PrecisionReport
from cmamil_sdk.engines.base import Precision
from cmamil_sdk.engines.choose import choose_engine, engine_precisions, known_precision
from cmamil_sdk.engines.gated import ParityRow
from cmamil_sdk.engines.graphs import graph_in, is_split
from cmamil_sdk.engines.parity import EncoderReference, missed_gates
from cmamil_sdk.errors import BundleUnsupported, EngineMissing, FieldInvalid, ParityFailed
from cmamil_sdk.tiling.recipe import Scale, TilingRecipe

from .aggregator import AggregatorGraph, compare_aggregator
from .check_slides import (
    CALIBRATION_TILES,
    JUDGED_TILES,
    DealtSlides,
    Slide,
    deal_slides,
    sample_tiles,
)
from .end_to_end import OnSlide, SlideJudge
from .half import write_half
from .reference import ReferenceModel, features_of


@dataclass(frozen=True)
class LowerPrecisions:
    """What is asked for beside fp32, and the slides to judge it on, if there are any."""

    asked: tuple[Precision, ...]
    dealt: DealtSlides | None


@dataclass(frozen=True)
class LowerGraphs:
    """What was measured while the graphs were written."""

    calibration_tiles: int
    encoder: Sequence[ParityRow]
    aggregator: Mapping[Precision, Mapping[str, float]]


def lower_precisions(
    precisions: Sequence[str],
    slides: Sequence[Slide],
    *,
    run: Path,
    folds: Sequence[int],
    labels: Sequence[str],
) -> LowerPrecisions:
    """Check what is asked for, and deal the slides as :func:`~.check_slides.deal_slides` does.

    Raises:
        FieldInvalid: an unknown precision, int8 without slides, slides without use, or as dealing them.
        RunInvalid: the run's ``splits.csv`` is damaged.
    """
    known = [known_precision(name) for name in precisions]
    asked = tuple(precision for precision in known if precision != "fp32")
    if slides and not asked:
        raise FieldInvalid(
            "--calibration has no effect with --precision fp32; leave it out, or add bf16, fp16 or int8."
        )
    if "int8" in asked and not slides:
        raise FieldInvalid(
            "--precision int8 is calibrated and judged on slides; name a folder or list of some that the "
            "run was trained and tested on with --calibration."
        )
    dealt = None
    if slides:
        dealt = deal_slides(slides, run, folds, labels=labels, calibrate="int8" in asked)
    return LowerPrecisions(asked, dealt)


def write_encoder_graphs(folder: Path, lower: LowerPrecisions, recipe: TilingRecipe) -> int:
    """Write the encoder in fp16 and int8, where they are asked for; returns the calibrating tiles.

    Raises:
        InputError: a slide cannot be used.
    """
    graph = folder / ENCODER_GRAPH
    if "fp16" in lower.asked:
        write_half(graph, graph_in(graph, "fp16"))
    if "int8" not in lower.asked or lower.dealt is None:
        return 0
    from .quantize import write_int8  # noqa: PLC0415 - the quantiser takes long to import

    tiles = sample_tiles(lower.dealt.calibration, recipe, CALIBRATION_TILES)
    write_int8(graph, graph_in(graph, "int8"), tiles)
    return len(tiles)


def write_aggregator_graphs(
    folder: Path, lower: LowerPrecisions, module: AggregatorGraph, scales: Sequence[Scale]
) -> dict[Precision, dict[str, float]]:
    """Write the aggregator in fp16, if that is asked for; returns how far it is from its model.

    In bf16 as well, where this machine computes it and the aggregator has parts for it.
    """
    graph = folder / AGGREGATOR_GRAPH
    found: dict[Precision, dict[str, float]] = {}
    if is_split(graph):
        with suppress(EngineMissing, BundleUnsupported):  # it stays in fp32, as every load says
            found["bf16"] = compare_aggregator(graph, module, scales, precision="bf16")
    if "fp16" in lower.asked:
        write_half(graph, graph_in(graph, "fp16"))
        found["fp16"] = compare_aggregator(graph, module, scales, precision="fp16")
    return found


def judge_precisions(
    folder: Path,
    manifest: Manifest,
    lower: LowerPrecisions,
    graphs: LowerGraphs,
    encoder: Callable[[], ReferenceModel],
    *,
    force: bool,
    on_slide: OnSlide | None = None,
) -> tuple[PrecisionReport, ...]:
    """A report for each precision asked for, and for bf16 if this machine has it: it is taken unasked.

    Args:
        folder: of the bundle's graphs.
        manifest: of the bundle, as far as it is known.
        lower, graphs: what is judged, and what is known of it.
        encoder: loads the eager model, if there are slides to judge it on.
        force: note what misses its gate in the report, and do not refuse it.
        on_slide: as :class:`~cmamil_sdk.export.end_to_end.SlideJudge`.

    Raises:
        ParityFailed: a precision misses its gates; the figures are in the message.
        EngineMissing: this machine does not compute in a precision, so it cannot be judged.
        InputError: a slide cannot be used.
    """
    missed = {precision: _missed_by_graphs(precision, graphs) for precision in lower.asked}
    for precision, why in missed.items():
        if why and not (
            force and all(map(isfinite, graphs.aggregator.get(precision, {}).values()))
        ):
            raise _refused(precision, why)
    in_use = manifest.model_copy(update={"precisions": _aggregator_reports(graphs)})
    judge = _slide_judge(folder, in_use, lower, encoder, on_slide)
    reports = []
    for precision in _reported(lower, graphs):
        found = None if judge is None else judge.judge(precision)
        if found is not None and precision in lower.asked and found.missed(precision):
            missed[precision] = ", ".join(
                filter(None, [missed[precision], found.missed(precision)])
            )
            if not force:
                raise _refused(precision, missed[precision])
        calibrating = lower.dealt.calibration if precision == "int8" and lower.dealt else ()
        reports.append(
            PrecisionReport(
                precision=precision,
                graphs=own_graphs(folder, precision),
                calibration_slides=len(calibrating),
                calibration_tiles=graphs.calibration_tiles if calibrating else 0,
                aggregator=graphs.aggregator.get(precision, {}),
                end_to_end=found,
                missed=missed.get(precision, ""),
            )
        )
    return tuple(reports)


def _missed_by_graphs(precision: Precision, graphs: LowerGraphs) -> str:
    """What misses its gate on any engine of this machine."""
    rows = [row for row in graphs.encoder if row.label.endswith(f"-{precision}")]
    measured = [row.parity for row in rows if row.parity is not None]
    if not measured:
        raise EngineMissing(f"{precision} cannot be judged on this machine: {rows[0].why}")
    missed = [f"the encoder on {row.label}: {row.missed}" for row in measured if row.missed]
    differences = graphs.aggregator.get(precision)
    # in bf16 an aggregator that misses stays in fp32, whatever its encoder does
    if precision != "bf16" and differences and missed_gates(differences, precision):
        missed.append(f"the {missed_gates(differences, precision)}")
    return ", ".join(missed)


def _reported(lower: LowerPrecisions, graphs: LowerGraphs) -> tuple[Precision, ...]:
    """Also bf16, which this machine takes by itself where it has it, if anything is known of it."""
    is_taken = "bf16" in engine_precisions(choose_engine("auto", "auto").engine)
    is_known = lower.dealt is not None or "bf16" in graphs.aggregator
    if "bf16" in lower.asked or not (is_taken and is_known):
        return lower.asked
    return ("bf16", *lower.asked)


def _aggregator_reports(graphs: LowerGraphs) -> tuple[PrecisionReport, ...]:
    """What a bundle must know of its aggregators to run them as it will."""
    return tuple(
        PrecisionReport(precision=precision, graphs=(), aggregator=differences)
        for precision, differences in graphs.aggregator.items()
    )


def _slide_judge(
    folder: Path,
    manifest: Manifest,
    lower: LowerPrecisions,
    encoder: Callable[[], ReferenceModel],
    on_slide: OnSlide | None,
) -> SlideJudge | None:
    if lower.dealt is None:
        return None
    tiles = sample_tiles(lower.dealt.judged, manifest.recipe, JUDGED_TILES)
    reference = EncoderReference(tiles, features_of(encoder(), tiles))
    return SlideJudge(folder, manifest, lower.dealt, reference, on_slide)


def _refused(precision: Precision, missed: str) -> ParityFailed:
    return ParityFailed(
        f"In {precision} the bundle is not close enough to its model: {missed}; leave {precision} out of "
        "--precision, or mark the bundle as failed with --force."
    )


__all__ = [
    "LowerGraphs",
    "LowerPrecisions",
    "judge_precisions",
    "lower_precisions",
    "write_aggregator_graphs",
    "write_encoder_graphs",
]
