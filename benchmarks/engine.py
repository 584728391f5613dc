"""A bundle's encoder on every engine and in every precision of this machine, beside the eager model.

Each way is measured in a process of its own, which tells its memory, and then the fastest batch of each
in turns with the eager model in fp32 on the same cores: on a machine whose speed drifts only such a ratio
counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmamil_sdk.bundle import Bundle
from cmamil_sdk.encoders.info import EncoderInfo
from cmamil_sdk.engines.choose import ENGINES
from cmamil_sdk.engines.graphs import STORED_PRECISIONS
from cmamil_sdk.errors import FieldInvalid, ParityFailed
from cmamil_sdk.export.encoder import loaded_encoder_of
from cmamil_sdk.files import write_atomic, write_json
from cmamil_sdk.machine import available_cores

from .case_rows import Row, add_ratios, case_csv
from .cases import EAGER, Case, engine_precision_pairs, measure_apart
from .closed_loop import Loop
from .contest import Contest
from .encoder_case import FOLDED, EncoderCase, has_folded
from .environment import describe_machine, load_average
from .figures import draw_engine
from .loading import measure_loading
from .pairs import MIN_PAIRS, Pairs
from .targets import ENCODER_DEFAULT, ENCODER_INT8, READY_S
from .workshop import Workshop

OnStep = Callable[[str, int, int], None]
"""``on_step(what, done, total)`` before each measurement."""

_SCALES = "5x,10x,20x"


@dataclass(frozen=True)
class EngineBench:
    """What is measured.

    Attributes:
        folder: of what the benchmark makes for itself.
        bundle: None takes one of the benchmarks' encoder and an untrained model.
        weights: of its encoder, if they came from a file.
        engines: names of engines.
        device: on which they run; the eager model stays on the CPU.
        batches: tiles of a call, each number in turn.
        callers: threads that call at a time; None takes one per core.
        loop: how long each way is measured.
        pairs: turns with the eager model, at least five.
        loads: how often the bundle is loaded.
    """

    folder: Path
    bundle: Path | None = None
    weights: Path | None = None
    engines: tuple[str, ...] = ENGINES
    device: str = "cpu"
    batches: tuple[int, ...] = (1, 16, 32)
    callers: int | None = None
    loop: Loop = field(default_factory=Loop)
    pairs: int = 15
    loads: int = 5

    def __post_init__(self) -> None:
        """Refuse settings that would measure nothing (FieldInvalid)."""
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")
        if not self.batches or min(self.batches) < 1:
            raise FieldInvalid("--batch must name numbers of tiles, each 1 or more.")
        if self.loads < 1:
            raise FieldInvalid(f"--loads {self.loads} measures nothing; give 1 or more.")
        if self.weights is not None and self.bundle is None:
            raise FieldInvalid("--weights has no effect without --bundle; leave it out.")


def measure_engines(bench: EngineBench, *, on_step: OnStep | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_step: called before each measurement.

    Raises:
        FieldInvalid: there is no such engine, or the bundle's encoder has no model in torch.
        CmamilError: whatever loading the bundle raises.
    """
    report = on_step or (lambda _what, _done, _total: None)
    load_before = load_average()
    workshop = Workshop(bench.folder)
    path, failed = (bench.bundle, {}) if bench.bundle else seeded_bundle(workshop)
    weights = bench.weights if bench.bundle else workshop.weights()
    loaded = Bundle.load(path, device=bench.device, callers=1)
    loaded.release_encoder()
    _refuse_graphs(loaded.manifest.encoder, weights)
    cases, absent = _cases(bench, path, weights, loaded.manifest.encoder)
    measured: list[tuple[Case, Row]] = []
    refused: dict[tuple[str, str], str] = {}
    for number, case in enumerate(cases):
        what = f"{case.engine} {case.precision}, {case.tiles} tiles a call"
        report(what, number, len(cases))
        if (case.engine, case.precision) in refused:
            continue
        row = measure_apart(case, bench.loop, what)
        if "why" in row:
            refused[case.engine, case.precision] = row["why"]
            continue
        settings = {name: getattr(case, name) for name in ("tiles", "callers", "threads")}
        measured.append((case, {**settings, **row}))
    report("in turns with the eager model", len(cases), len(cases))
    times = add_ratios(measured, bench.pairs)
    rows = [row for _, row in measured]
    why = {f"{engine} {precision}": text for (engine, precision), text in refused.items()}
    return {
        "benchmark": "engine",
        "settings": {
            **asdict(bench),
            "folder": str(bench.folder),
            "weights": None if weights is None else weights.name,
            "bundle": loaded.label,
            "encoder": loaded.manifest.encoder.id,
        },
        "default": loaded.engine_label,
        "default_reason": loaded.encoder_info.reason,
        "rows": rows,
        "not_here": absent | failed | why,
        "int8_over_default": _int8_over_default(rows, times, loaded.engine_label),
        "loading": measure_loading(path, bench.loads, partial(report, "loading the bundle")),
        "environment": {
            **describe_machine(),
            "bundle_sha256": loaded.sha256,
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets this measurement speaks of."""
    default = document["default"]
    ratios = [
        row["ratio"] for row in document["rows"] if row["label"] == default and "ratio" in row
    ]
    targets = [ENCODER_DEFAULT.judge(ratio) for ratio in ratios]
    if document["int8_over_default"] is not None:
        targets.append(ENCODER_INT8.judge(document["int8_over_default"]))
    return [*targets, READY_S.judge(document["loading"]["ready_s"])]


def write_engines(folder: Path, document: dict[str, Any]) -> None:
    """Write ``engine.json`` (everything), ``engine.csv`` (a line per row) and ``engine.png``."""
    write_json(folder / "engine.json", {**document, "targets": judged(document)})
    text = case_csv(document["rows"], document["environment"])
    write_atomic(folder / "engine.csv", text.encode())
    draw_engine(folder / "engine.csv", folder / "engine.png")


def seeded_bundle(workshop: Workshop) -> tuple[Path, dict[str, str]]:
    """A bundle with graphs in every precision that has its own, or without them and why."""
    try:
        return workshop.bundle(_SCALES, STORED_PRECISIONS), {}
    except ParityFailed as problem:
        return workshop.bundle(_SCALES), {", ".join(STORED_PRECISIONS): str(problem)}


def _refuse_graphs(encoder: EncoderInfo, weights: Path | None) -> None:
    """Refuse an encoder whose model is not to be had (as encoder_of), or is a graph (FieldInvalid)."""
    if loaded_encoder_of(encoder, weights).weights_file is None:
        raise FieldInvalid(
            f"Encoder {encoder.id} is a graph and has no model in torch to compare with; measure a "
            "bundle of another encoder."
        )


def _cases(
    bench: EngineBench, bundle: Path, weights: Path | None, encoder: EncoderInfo
) -> tuple[list[EncoderCase], dict[str, str]]:
    """Every way to run the encoder, and why some engines are not here."""
    engines, absent = engine_precision_pairs(bench.engines)
    eager = [EAGER, FOLDED] if has_folded(encoder) else [EAGER]
    ways = [*itertools.chain(*map(_torch_ways, eager)), *_engine_ways(engines, bench)]
    made = partial(EncoderCase, str(bundle), None if weights is None else str(weights))
    cases = [
        made(engine, device, precision, tiles, callers, threads)
        for engine, device, precision, callers, threads in ways
        for tiles in bench.batches
    ]
    return cases, absent


def _torch_ways(network: str) -> Iterator[tuple[str, str, str, int, int]]:
    """One caller of many threads, as torch does by itself, and a caller per core."""
    cores = available_cores()
    yield network, "cpu", "fp32", 1, cores
    if cores > 1:
        yield network, "cpu", "fp32", cores, 1


def _engine_ways(
    engines: list[tuple[str, str]], bench: EngineBench
) -> Iterator[tuple[str, str, str, int, int]]:
    callers = bench.callers or available_cores()
    for engine, precision in engines:
        yield engine, bench.device, precision, callers, 1


def _int8_over_default(rows: list[Row], times: dict[str, Contest], default: str) -> float | None:
    """How many times faster int8 is than the default precision; None where it is not offered."""
    passed = [row["label"] for row in rows if not row["missed"] and row["label"].endswith("-int8")]
    if default not in times or not passed:
        return None
    usual_s = times[default].wall.ours_s
    return max(Pairs(usual_s, times[label].wall.ours_s).ratio()[0] for label in passed)


__all__ = [
    "EngineBench",
    "OnStep",
    "judged",
    "measure_engines",
    "seeded_bundle",
    "write_engines",
]
