"""An encoder on an engine and in a precision whose features are close enough to its model's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cmamil_sdk.engines.base import Engine
from cmamil_sdk.engines.choose import (
    PRECISIONS,
    choose_engine,
    engine_precisions,
    load_engine,
    why_no_bf16,
)
from cmamil_sdk.engines.parity import EncoderParity, refuse_encoder
from cmamil_sdk.engines.plans import known_plans
from cmamil_sdk.errors import BundleUnsupported, EngineMissing

Measure = Callable[[Engine], EncoderParity]
Loader = Callable[..., Engine]


@dataclass(frozen=True)
class GatedEncoder:
    """A loaded encoder and how close it is to its model."""

    engine: Engine
    parity: EncoderParity


@dataclass(frozen=True)
class ParityRow:
    """``label`` names engine, device and precision; without ``parity``, ``why`` says why not."""

    label: str
    parity: EncoderParity | None
    why: str


def open_encoder(
    graph: Path,
    measure: Measure,
    *,
    engine: str = "auto",
    device: str = "auto",
    engine_cache: Path | None = None,
    precision: str = "auto",
    callers: int | None = None,
    allow_failed: bool = False,
    loader: Loader | None = None,
    hashes: Mapping[str, str] | None = None,
) -> GatedEncoder:
    """Load an encoder, and measure it before it is used.

    Args:
        graph: the encoder's ``.onnx`` file.
        measure: compares a loaded engine with the reference.
        engine, device, engine_cache, callers, hashes: as :func:`~cmamil_sdk.engines.load_engine`.
        precision: a :data:`~cmamil_sdk.engines.base.Precision`, or ``auto``: bf16 where the engine has
            it on this processor and it passes the gate, else fp32; the engine's ``info`` says why.
        allow_failed: hand out an encoder that misses its gate.
        loader: called in place of :func:`~cmamil_sdk.engines.load_engine`.

    Raises:
        FieldInvalid, EngineMissing, BundleUnsupported, BundleCorrupt: as
            :func:`~cmamil_sdk.engines.load_engine`.
        ParityFailed: the gate is missed; the figures are in the message.
    """
    load = partial(
        loader or load_engine, graph, callers=callers, engine_cache=engine_cache, hashes=hashes
    )
    if precision == "auto":
        found = _in_the_fastest(load, measure, engine, device)
    else:
        loaded = load(engine=engine, device=device, precision=precision)
        found = _measured(loaded, measure, f"{precision} was asked for")
    if not (found.parity.passed or allow_failed):
        found.engine.close()
        refuse_encoder(found.parity, graph.name)
    return found


def parity_table(
    graph: Path,
    measure: Measure,
    *,
    engine_cache: Path | None = None,
    hashes: Mapping[str, str] | None = None,
) -> list[ParityRow]:
    """An encoder on every engine, device and precision of this machine, and why others are not there.

    TensorRT is looked at where there are plans of it, beside the graph or in ``engine_cache``, and torch
    where it finds a CUDA device.
    """
    load = partial(load_engine, graph, callers=1, engine_cache=engine_cache, hashes=hashes)
    rows = []
    planned = {plan.document.key.runtime for plan in known_plans(graph, engine_cache, hashes)}
    for engine, device, precision in _combinations(planned):
        label = f"{engine}-{device.split(':')[0]}-{precision}"
        try:
            loaded = load(engine=engine, device=device, precision=precision)
        except (EngineMissing, BundleUnsupported) as problem:
            rows.append(ParityRow(label, None, str(problem)))
            continue
        rows.append(ParityRow(label, measure(loaded), ""))
        loaded.close()
    return rows


def _combinations(planned: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Engine, device and precision of each row; ``planned`` are runtimes of TensorRT with plans."""
    devices = ["cpu"]
    if choose_engine("auto", "auto").device != "cpu":
        devices.append("cuda:0")
    yield from itertools.product(["onnxruntime"], devices, PRECISIONS)
    yield from itertools.product(["openvino"], ["cpu"], PRECISIONS)
    if choose_engine("torch", "auto").device != "cpu":
        yield from itertools.product(["torch"], ["cuda:0"], PRECISIONS)
    for runtime in sorted(planned):
        yield from itertools.product([runtime], ["cuda:0"], engine_precisions(runtime))


def _in_the_fastest(
    load: Callable[..., Engine], measure: Measure, engine: str, device: str
) -> GatedEncoder:
    """In bf16 if that can be had and passes, else in fp32; what passes is the only one compiled."""
    missed = ""
    choice = choose_engine(engine, device)
    if "bf16" in engine_precisions(choice.engine, choice.device):
        try:
            fast = load(engine=engine, device=device, precision="bf16")
        except EngineMissing:  # the engine cannot run this graph, and another took its place
            pass
        else:
            found = _measured(fast, measure, "bf16, which passes the gate")
            if found.parity.passed:
                return found
            fast.close()
            missed = f"bf16 misses the gate: {found.parity.missed}"
    exact = load(engine=engine, device=device)
    return _measured(exact, measure, f"fp32, {missed or why_no_bf16(exact.info.name)}")


def _measured(engine: Engine, measure: Measure, why: str) -> GatedEncoder:
    engine.info = replace(engine.info, reason=f"{engine.info.reason}; {why}")
    return GatedEncoder(engine, measure(engine))


__all__ = ["GatedEncoder", "Loader", "Measure", "ParityRow", "open_encoder", "parity_table"]
