"""Aggregators on every engine of this machine, beside the eager model, by the size of the bag.

Measured as encoders are (engine.py): each way alone in a process of its own, then in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmamil_sdk.bundle.manifest import AGGREGATOR_GRAPH
from cmamil_sdk.bundle.verify import read_manifest, verify_files
from cmamil_sdk.engines.choose import ENGINES
from cmamil_sdk.errors import FieldInvalid
from cmamil_sdk.export.aggregator import export_aggregator
from cmamil_sdk.files import write_atomic, write_json
from cmamil_sdk.machine import available_cores
from cmamil_sdk.synthetic.bags import SCALES

from .aggregator_case import AggregatorCase
from .case_rows import Row, add_ratios, case_csv
from .cases import EAGER, engine_precision_pairs, measure_apart
from .closed_loop import Loop
from .environment import describe_machine, load_average
from .figures import draw_aggregator
from .pairs import MIN_PAIRS
from .targets import AGGREGATOR_4000, AGGREGATOR_64000
from .training_steps import FORMS, build_form

OnStep = Callable[[str, int, int], None]
"""``on_step(what, done, total)`` before each measurement."""

MakeCase = Callable[..., AggregatorCase]

DEFAULT_LABELS = ("openvino-cpu-bf16", "onnxruntime-cpu-fp32")
"""What runs an aggregator unless TensorRT is named (docs/engines.md): the first that passes its gate."""

_FP32 = "onnxruntime-cpu-fp32"
"""Whose profile says how much of a run is matrix products."""

_PRODUCTS_COLUMNS = ("products_share", "ratio_limit")

_TARGETS = {4_000: AGGREGATOR_4000, 64_000: AGGREGATOR_64000}


@dataclass(frozen=True)
class AggregatorBench:
    """What is measured.

    Attributes:
        folder: of the graphs that the benchmark makes for itself.
        bundle: whose aggregator is measured; None takes untrained models of ``forms``.
        forms: of :data:`~cmamil_sdk.benchmarks.training_steps.FORMS`.
        feature_dim: width D of their features.
        engines: names of engines.
        device: on which they run; the eager model stays on the CPU.
        tiles: of the finest scale, each number in turn.
        threads: within a call, of engines and of torch; None takes one per core.
        loop: how long each way is measured.
        pairs: turns with the eager model, at least five.
    """

    folder: Path
    bundle: Path | None = None
    forms: tuple[str, ...] = ("nested",)
    feature_dim: int = 1024
    engines: tuple[str, ...] = ENGINES
    device: str = "cpu"
    tiles: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000)
    threads: int | None = None
    loop: Loop = field(default_factory=Loop)
    pairs: int = 15

    def __post_init__(self) -> None:
        """Refuse settings that would measure nothing (FieldInvalid)."""
        unknown = sorted(set(self.forms) - set(FORMS))
        if unknown or not self.forms:
            raise FieldInvalid(
                f"--forms {','.join(self.forms)!r} must be some of {', '.join(FORMS)}."
            )
        if self.pairs < MIN_PAIRS:
            raise FieldInvalid(f"--pairs {self.pairs} is too few; give at least {MIN_PAIRS}.")
        if not self.tiles or min(self.tiles) < 1 or self.feature_dim < 1:
            raise FieldInvalid("--tiles and --feature-dim must be 1 or more.")
        cores = available_cores()
        if self.threads is not None and not 1 <= self.threads <= cores:
            raise FieldInvalid(
                f"--threads {self.threads} must lie between 1 and the {cores} cores."
            )


def measure_aggregators(bench: AggregatorBench, *, on_step: OnStep | None = None) -> dict[str, Any]:
    """Measure; returns the document that docs/performance.md describes.

    Args:
        bench: the settings.
        on_step: called before each measurement.

    Raises:
        FieldInvalid: there is no such engine.
        BundleCorrupt, BundleUnsupported: the bundle cannot be used.
    """
    report = on_step or (lambda _what, _done, _total: None)
    load_before = load_average()
    engines, absent = engine_precision_pairs(bench.engines)
    rows: list[Row] = []
    refused: dict[tuple[str, str], list[int]] = {}
    for form, made in _subjects(bench):
        for tiles in bench.tiles:
            what = f"{form}, {tiles} tiles"
            found, refusals = _measure_size(
                bench, form, partial(made, tiles=tiles), engines, partial(report, what)
            )
            rows += found
            for refusal in refusals.items():
                refused.setdefault(refusal, []).append(tiles)
    return {
        "benchmark": "aggregator",
        "settings": {
            **asdict(bench),
            "folder": str(bench.folder),
            "bundle": None if bench.bundle is None else str(bench.bundle),
            "threads": bench.threads or available_cores(),
        },
        "rows": rows,
        "not_here": absent | _not_here(refused, bench.tiles),
        "environment": {
            **describe_machine(),
            "load_average": {"before": load_before, "after": load_average()},
        },
    }


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets this measurement speaks of: nested attention on what runs aggregators."""
    compared = [row for row in document["rows"] if row["form"] == "nested" and "ratio" in row]
    missing = {row["label"] for row in compared if row["missed"]}  # on bags of any size
    rows = {(r["label"], r["tiles"]): r for r in compared if r["label"] not in missing}
    labels = {label for label, _ in rows}
    default = next((label for label in DEFAULT_LABELS if label in labels), "")
    return [
        target.judge(rows[default, tiles]["ratio"]) | {"label": default}
        for tiles, target in _TARGETS.items()
        if (default, tiles) in rows
    ]


def write_aggregators(folder: Path, document: dict[str, Any]) -> None:
    """Write ``aggregator.json`` (everything), ``aggregator.csv`` and ``aggregator.png``."""
    write_json(folder / "aggregator.json", {**document, "targets": judged(document)})
    text = case_csv(document["rows"], document["environment"], ("form", *_PRODUCTS_COLUMNS))
    write_atomic(folder / "aggregator.csv", text.encode())
    draw_aggregator(folder / "aggregator.csv", folder / "aggregator.png")


def _measure_size(
    bench: AggregatorBench,
    form: str,
    made: MakeCase,
    engines: list[tuple[str, str]],
    report: Callable[[int, int], None],
) -> tuple[list[Row], dict[str, str]]:
    """Rows of all ways on bags of one size, and why some cannot be run."""
    threads = bench.threads or available_cores()
    ways = [(EAGER, "cpu", "fp32"), *((e, bench.device, p) for e, p in engines)]
    measured: list[tuple[AggregatorCase, Row]] = []
    refused: dict[str, str] = {}
    for number, (engine, device, precision) in enumerate(ways):
        report(number, len(ways))
        case = made(engine=engine, device=device, precision=precision, threads=threads)
        what = f"{form}, {engine} {precision}"
        row = measure_apart(case, bench.loop, f"{what}, {case.tiles} tiles")
        if "why" in row:
            refused[what] = row["why"]
            continue
        settings = {"form": form, "tiles": case.tiles, "callers": 1, "threads": threads}
        measured.append((case, {**settings, **row, "missed": case.missed()}))
    report(len(ways), len(ways))
    add_ratios(measured, bench.pairs)
    for case, row in measured:
        if row["label"] == _FP32 and "ratio" in row:
            row.update(_limit(case, row))
    return [row for _, row in measured], refused


def _limit(case: AggregatorCase, row: Row) -> Row:
    """How much of a run is matrix products, and its ratio if all else took no time."""
    share = case.products_share()
    return dict(zip(_PRODUCTS_COLUMNS, (share, row["ratio"] / share), strict=True))


def _not_here(refused: Mapping[tuple[str, str], list[int]], tiles: Sequence[int]) -> dict[str, str]:
    """Why some ways cannot be run, with the tiles where it is not so at every size."""
    return {
        what if len(sizes) == len(tiles) else f"{what}, {', '.join(map(str, sizes))} tiles": why
        for (what, why), sizes in refused.items()
    }


def _subjects(bench: AggregatorBench) -> Iterator[tuple[str, MakeCase]]:
    """What is measured: what tables call it, and a case of it less how it is run."""
    if bench.bundle is not None:
        yield _of_bundle(bench.bundle)
        return
    for form in bench.forms:
        yield form, _untrained(form, bench)


def _of_bundle(path: Path) -> tuple[str, MakeCase]:
    manifest, _ = read_manifest(path)
    verify_files(path, manifest)
    settings = manifest.hyperparameters
    return settings.get("cross_attention", manifest.model_kind), partial(
        AggregatorCase,
        graph=str(path / AGGREGATOR_GRAPH),
        model_kind=manifest.model_kind,
        hyperparameters=settings,
        scales=[(scale.name, scale.mpp) for scale in manifest.recipe.scales],
        index_inputs=list(manifest.index_inputs),
        coarse_temperature=manifest.coarse_temperature,
    )


def _untrained(form: str, bench: AggregatorBench) -> MakeCase:
    """A seeded model as `cmamil train` would make it; its graph is written anew each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, _ = build_form(form, bench.feature_dim)
    model.eval()
    scales = [scale for scale in SCALES if scale.name in model.scales]
    coarse = None if model.n_coarse is None else 1.0
    graph = bench.folder / f"aggregator-{form}-{bench.feature_dim}.onnx"
    export_aggregator(model, scales, 1.0, graph, coarse_temperature=coarse)
    return partial(
        AggregatorCase,
        graph=str(graph),
        model_kind=model.kind,
        hyperparameters=model.hyperparameters,
        scales=[(scale.name, scale.mpp) for scale in scales],
        index_inputs=list(model.index_names),
        coarse_temperature=coarse,
    )


__all__ = [
    "AggregatorBench",
    "OnStep",
    "judged",
    "measure_aggregators",
    "write_aggregators",
]
